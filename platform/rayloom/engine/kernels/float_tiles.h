#pragma once
#include <cstdint>

// out = x W^T + bias (may be null).
struct Problem {
    float* out;
    const float *x, *weights, *bias;
    int64_t stride;  // of the weights
    int num_rows, depth, width;
};

// Solves it on AMX; false where the machine has none, and nothing is done.
bool multiply_by_tiles(const Problem& p);
