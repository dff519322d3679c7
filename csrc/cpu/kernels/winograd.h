// Winograd's algorithm: the tiles of a block are transformed, multiplied and transformed back.
#pragma once

#include "direct_tile.h"
#include "multiply.h"
#include "view.h"
#include "winograd_transform.h"

namespace captum_krypton {
namespace {

template <int Taps, typename T>
class Winograd {
 public:
  Winograd(const Convolution& conv, int64_t begin, int64_t end, float* scratch)
      : conv_(conv),
        tiles_(conv.tiles + begin),
        count_(end - begin),
        channels_(conv.source.channels),
        depth_(winograd_depth(conv.kernel, channels_)),
        padded_(round_up(conv.out.channels, kPanel)),
        plane_(count_ * depth_ + 16),
        out_plane_(count_ * padded_ + 16),
        cells_(scratch),
        products_(cells_ + winograd_points(conv.kernel) * plane_),
        slots_(reinterpret_cast<int32_t*>(products_ + winograd_points(conv.kernel) * out_plane_)),
        beyond_(slots_ + kMostOutputs * kMostOutputs * count_) {}

  void run() {
    assign_slots();
    for (int64_t tile = 0; tile < count_; ++tile) {
      input(tile);
    }
    multiply();
    for (int64_t tile = 0; tile < count_; ++tile) {
      if (!beyond_[tile]) {
        output(tile);
      }
    }
    // Weights of so many output channels stay in the caches for all tiles.
    for (int64_t k = 0; any_beyond_ && k < conv_.out.channels; k += kPanel) {
      for (int64_t tile = 0; tile < count_; ++tile) {
        if (beyond_[tile]) {
          direct(tile, k, least(k + kPanel, conv_.out.channels));
        }
      }
    }
  }

 private:
  // Cells along an axis that a tile reads at most.
  static constexpr int kMostCells = group_points(Taps) + Taps * (kMostGroups - 1);
  static constexpr int kMostPlanes = 3 * kMostGroups;

  int64_t groups(int axis) const { return axis_groups(conv_.kernel[axis], Taps); }
  int points_along(int axis) const { return axis_points(conv_.kernel[axis], Taps); }
  int outputs(const Tile& tile, int axis) const {
    return conv_.kernel[axis] == 1 ? 0 : (axis == 1 ? tile.height : tile.width);
  }

  // Tiles that have a point lie side by side in its plane: a tile's place depends on the point.
  void assign_slots() {
    for (int u = 0; u < kMostOutputs; ++u) {
      for (int v = 0; v < kMostOutputs; ++v) {
        int32_t* const slots = slots_ + (u * kMostOutputs + v) * count_;
        int32_t used = 0;
        for (int64_t tile = 0; tile < count_; ++tile) {
          slots[tile] = used;
          used += tiles_[tile].height > u && tiles_[tile].width > v;
        }
        used_[u][v] = used;
      }
    }
  }

  // Where the tile's numbers of each of its points are.
  template <typename Pointer>
  KRYPTON_INLINE void addresses(int64_t tile, Pointer planes, int64_t plane, int64_t depth,
                                Pointer* out) const {
    const int height = outputs(tiles_[tile], 1), width = outputs(tiles_[tile], 2);
    for (int i = 0; i < points<Taps>(height); ++i) {
      const int y = point<Taps>(height, i);
      for (int j = 0; j < points<Taps>(width); ++j) {
        const int x = point<Taps>(width, j);
        const int kind = least_outputs<Taps>(y) * kMostOutputs + least_outputs<Taps>(x);
        out[i * kMostPoints + j] =
            planes + (y * points_along(2) + x) * plane + slots_[kind * count_ + tile] * depth;
      }
    }
  }

  // The cells that a tile reads of the plane of one tap along the depth.
  void read_plane(const Tile& tile, int64_t tap, const T** cells) const {
    const int64_t rows = points<Taps>(outputs(tile, 1)) + Taps * (groups(1) - 1);
    const int64_t columns = points<Taps>(outputs(tile, 2)) + Taps * (groups(2) - 1);
    // The last group may have fewer taps; what the others would read does not count.
    const int64_t read_rows = tile.height + conv_.kernel[1] - 1;
    const int64_t read_columns = tile.width + conv_.kernel[2] - 1;
    const View<T> view_of = view<T>(conv_.source, tile.window, tile.plane + tap);
    for (int64_t i = 0; i < rows; ++i) {
      const Row<T> row = view_of.row(tile.row + i);
      for (int64_t j = 0; j < columns; ++j) {
        const bool read = i < read_rows && j < read_columns;
        cells[i * kMostCells + j] = read ? row.at(tile.column + j) : row.zeros;
      }
    }
  }

  void input(int64_t number) {
    const Tile& tile = tiles_[number];
    const int height = outputs(tile, 1), width = outputs(tile, 2);
    const T* cells[kMostCells * kMostCells];
    float* to[kMostPoints * kMostPoints];
    addresses(number, cells_, plane_, depth_, to);
    int64_t at = 0;
    Vector level{};
    for (int64_t tap = 0; tap < conv_.kernel[0]; ++tap) {
      read_plane(tile, tap, cells);
      for (int64_t i = 0; i < groups(1); ++i) {
        for (int64_t j = 0; j < groups(2); ++j) {
          const T* const* const group = cells + Taps * (i * kMostCells + j);
          for (int64_t c = 0; c < channels_; c += kLanes) {
            const int64_t channel = least(c, channels_ - kLanes);  // the last ones twice
            const Vector squares = transform_cells(height, width, group, channel, to, at);
            level += squares * load<Vector>(conv_.range->energy + channel);
          }
          at += channels_;
        }
      }
    }
    const int64_t all = conv_.kernel[0] * groups(1) * groups(2);
    const int64_t read = all * points<Taps>(height) * points<Taps>(width);
    const float limit = conv_.range->limit[conv_.source.image[tile.window]];
    const float sum = total(level);  // not finite where a number is not: then below nothing
    beyond_[number] = !(sum <= limit * read && sum < __builtin_inff());
    any_beyond_ = any_beyond_ || beyond_[number];
  }

  // Transforms one vector of channels of a group of taps; gives the sums of their squares.
  KRYPTON_INLINE Vector transform_cells(int height, int width, const T* const* group,
                                        int64_t channel, float* const* to, int64_t at) const {
    if constexpr (!kWidens<T>) {
      return transform_input<Taps, kMostCells>(height, width, group, channel, to, at + channel);
    } else {
      Vector numbers[kMostPoints * kMostPoints];
      const float* cells[kMostPoints * kMostCells];
      for (int i = 0; i < points<Taps>(height); ++i) {
        for (int j = 0; j < points<Taps>(width); ++j) {
          Vector& number = numbers[i * kMostPoints + j];
          number = load<Vector>(group[i * kMostCells + j] + channel);
          cells[i * kMostCells + j] = reinterpret_cast<const float*>(&number);
        }
      }
      return transform_input<Taps, kMostCells>(height, width, cells, 0, to, at + channel);
    }
  }

  // Output channels of a tile, by definition.
  void direct(int64_t number, int64_t begin, int64_t end) {
    constexpr int kPlane = kMostCells * kMostCells;
    const Tile& tile = tiles_[number];
    const T* cells[kMostPlanes * kPlane];
    for (int64_t tap = 0; tap < conv_.kernel[0]; ++tap) {
      read_plane(tile, tap, cells + tap * kPlane);
    }
    const T* residual[kMostOutputs * kMostOutputs];
    const Finish<T> finish = finish_of(tile, residual);
    for (int i = 0; i < tile.height; ++i) {
      const DirectRow<T> row{conv_,
                             cells + i * kMostCells,
                             kMostCells,
                             kPlane,
                             begin,
                             end,
                             finish,
                             i * kMostOutputs,
                             first_output(tile) + i * conv_.out.width * conv_.out.channels};
      row.run_all(tile.width);
    }
  }

  void multiply() {
    const float* weight = conv_.weight;
    const float* const end = weight + winograd_points(conv_.kernel) * padded_ * depth_;
    for (int y = 0; y < points_along(1); ++y) {
      for (int x = 0; x < points_along(2); ++x) {
        const int64_t number = y * points_along(2) + x;
        const int64_t rows = used_[least_outputs<Taps>(y)][least_outputs<Taps>(x)];
        for (int64_t k = 0; k < padded_; k += kPanel) {
          const float* const next = weight + depth_ * kPanel;
          for_rows<kRows>(0, rows,
                          MultiplyRows{cells_ + number * plane_, rows, depth_, weight,
                                       next < end ? next : nullptr,
                                       products_ + number * out_plane_ + k, padded_});
          weight = next;
        }
      }
    }
  }

  // What is done to the tile's outputs; `residual` is room for what is added to them.
  Finish<T> finish_of(const Tile& tile, const T* (&residual)[kMostOutputs * kMostOutputs]) const {
    if (conv_.ending.residual) {
      const View<T> cells = view<T>(*conv_.ending.residual, tile.window, tile.plane);
      for (int i = 0; i < tile.height; ++i) {
        const Row<T> row = cells.row(tile.row + i);
        for (int j = 0; j < tile.width; ++j) {
          residual[i * kMostOutputs + j] = row.at(tile.column + j);
        }
      }
    }
    return {conv_.ending, residual};
  }

  T* first_output(const Tile& tile) const {
    const Output& out = conv_.out;
    const int64_t row = (tile.window * out.depth + tile.plane) * out.height + tile.row;
    return static_cast<T*>(out.data) + (row * out.width + tile.column) * out.channels;
  }

  void output(int64_t number) {
    const Tile& tile = tiles_[number];
    const int height = outputs(tile, 1), width = outputs(tile, 2);
    const T* residual[kMostOutputs * kMostOutputs];
    const Finish<T> finish = finish_of(tile, residual);
    const Output& out = conv_.out;
    const float* from[kMostPoints * kMostPoints];
    addresses<const float*>(number, products_, out_plane_, padded_, from);
    T* const to = first_output(tile);
    for (int64_t c = 0; c < out.channels; c += kLanes) {
      const int64_t channel = least(c, out.channels - kLanes);  // the last ones twice
      Vector made[kMostOutputs][kMostOutputs];
      transform_back<Taps>(height, width, from, channel, made);
      for (int i = 0; i < tile.height; ++i) {
        for (int j = 0; j < tile.width; ++j) {
          store(to + (i * out.width + j) * out.channels + channel,
                finish.apply(made[i][j], i * kMostOutputs + j, channel));
        }
      }
    }
  }

  const Convolution& conv_;
  const Tile* tiles_;
  int64_t count_, channels_, depth_, padded_, plane_, out_plane_;
  float* cells_;
  float* products_;
  int32_t* slots_;
  int32_t* beyond_;  // whether a tile is out of range
  bool any_beyond_ = false;
  int32_t used_[kMostOutputs][kMostOutputs];
};

template <typename T>
void winograd(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  if (group_taps(conv.kernel) == 4) {
    Winograd<4, T>(conv, begin, end, scratch).run();
  } else {
    Winograd<3, T>(conv, begin, end, scratch).run();
  }
}

}  // namespace
}  // namespace captum_krypton
