#define KRYPTON_MODULE _C
#include "module.h"
