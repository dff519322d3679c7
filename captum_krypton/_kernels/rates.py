"""What operations cost, in seconds: as guessed, and as measured on processors that are known."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["GUESSED", "GUESSED_OF_GPUS", "KNOWN", "KNOWN_GPUS", "Processor", "Rates"]


@dataclass(frozen=True)
class Rates:
    """Seconds for one of each, on all threads.

    Attributes:
        convolution: a multiply-accumulate of torch's convolution on blocks.
        grouped: the same, of a depthwise or narrow grouped one.
        linear: a multiply-accumulate of a linear layer or another matrix product.
        element: an element moved through memory by an operator of torch.
        call: a call of an operator of torch and its gathering, whatever their size.
        direct: a multiply-accumulate of the direct kernel.
        product: one of the products of Winograd's algorithm.
        transform: a number that its transforms make or read.
        depthwise: a multiply-accumulate of the depthwise kernel.
        pooling: a number that the pooling kernel reads.
        kernel: a call of a compiled kernel, whatever its size.
    """

    convolution: float
    grouped: float
    linear: float
    element: float
    call: float
    direct: float
    product: float
    transform: float
    depthwise: float
    pooling: float
    kernel: float

    def of_torch_convolution(self, groups: int, channels: int, out_channels: int) -> float:
        """Seconds for a multiply-accumulate of torch's convolution, transposed or not.

        Args:
            groups: groups of channels that do not mix.
            channels: input channels of a group.
            out_channels: output channels of a group. They are computed in blocks, however few.
        """
        if groups > 1 and channels < _NARROW:
            return self.grouped
        blocks = -(-out_channels // _BLOCK)
        return self.convolution * blocks * _BLOCK / out_channels


# Their ratios are those of a desktop CPU; they rank plans where nothing better is known.
GUESSED = Rates(
    convolution=1.4e-11,
    grouped=1.1e-10,
    linear=1.4e-11,
    element=4e-10,
    call=2e-5,
    direct=1.4e-11,
    product=1.3e-11,
    transform=2.5e-10,
    depthwise=1e-10,
    pooling=1e-10,
    kernel=3e-5,
)
# Those of a data centre's GPU: convolutions in TF32, products in float32, launches from a graph.
GUESSED_OF_GPUS = Rates(
    convolution=7e-15,
    grouped=1e-12,
    linear=4e-14,
    element=2e-12,
    call=1e-5,
    direct=7e-15,
    product=7e-15,
    transform=2e-12,
    depthwise=1e-12,
    pooling=1e-12,
    kernel=5e-6,
)
_NARROW = 8  # input channels of a group
_BLOCK = 16  # output channels that fill the registers of a processor


@dataclass(frozen=True)
class Processor:
    """What the rates of a CPU depend on, but for the build of the kernels and of torch.

    Attributes:
        name: what the system calls it; where that says little, its family and model as well.
        vectors: the vector instructions that torch and the kernels use.
        threads: threads of an operator.
    """

    name: str
    vectors: str
    threads: int

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.name}, {self.vectors}, {threads}"


# The least of many measurements each, by `examples/benchmarks/measure_rates.py`.
KNOWN = {
    Processor("AMD EPYC, family 26, model 2", "AVX512", 1): Rates(
        convolution=8.53e-12,
        grouped=1.96e-11,
        linear=1.87e-11,
        element=6.82e-11,
        call=8.03e-06,
        direct=8.22e-12,
        product=9.26e-12,
        transform=2.6e-10,
        depthwise=3.07e-11,
        pooling=3.84e-11,
        kernel=8.87e-06,
    ),
    Processor("AMD EPYC, family 26, model 2", "AVX512", 2): Rates(
        convolution=4.4e-12,
        grouped=1.16e-11,
        linear=9.69e-12,
        element=3.61e-11,
        call=7.71e-06,
        direct=4.22e-12,
        product=5.56e-12,
        transform=1.22e-10,
        depthwise=1.51e-11,
        pooling=2.02e-11,
        kernel=9.23e-06,
    ),
}
# With TF32 in convolutions alone, as PyTorch has it. From the profile of whole maps, by
# `measure_rates.py --profile`: what it does not show is guessed.
KNOWN_GPUS = {
    "NVIDIA H200": replace(
        GUESSED_OF_GPUS, convolution=6.26e-15, linear=6.03e-14, element=1.89e-12
    ),
}
