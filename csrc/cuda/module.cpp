#define KRYPTON_MODULE _C_cuda
#include "../module.h"
