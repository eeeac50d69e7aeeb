#pragma once
#include <cstdint>

// out = x W^T + bias (may be null) on AMX; false where the machine has none, and nothing is done.
bool linear_fp32_tiles(float* out, const float* x, const float* weights, int64_t stride, const float* bias, int num_rows,
                       int depth, int width);
