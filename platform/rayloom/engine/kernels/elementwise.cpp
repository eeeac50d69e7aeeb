// What lies between the linear layers: norms, rotations, activations. Everything float32, rows contiguous unless said.
#include <algorithm>
#include <cmath>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "vectors.h"

namespace {

constexpr int64_t WORTH = 1 << 15;

// x / y of y >= 1, to about one unit in the last place: a Newton step on an estimate is faster than dividing.
INLINE f16 ratio(f16 x, f16 y) {
#if defined(__AVX512F__)
    const f16 estimate = (f16)_mm512_rcp14_ps((__m512)y);
    return x * (estimate * (2.0f - y * estimate));
#else
    return x / y;
#endif
}

INLINE f16 silu(f16 x) { return ratio(x, exponential(-x) + 1.0f); }

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
INLINE f16 gelu(f16 x) {
    const f16 u = (x + x * x * x * 0.044715f) * 1.5957691216057308f;
    return ratio(x, exponential(-u) + 1.0f);
}

// f over n values, the tail through a padded vector, so that every element is computed alike.
template <typename F>
INLINE void map(int64_t n, const float* x, const float* y, float* out, F f) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store(out + i, f(load(x + i), load(y + i)));
    if (i == n) return;
    float tail_x[16] = {}, tail_y[16] = {}, tail[16];
    std::copy(x + i, x + n, tail_x);
    std::copy(y + i, y + n, tail_y);
    store(tail, f(load(tail_x), load(tail_y)));
    std::copy(tail, tail + (n - i), out + i);
}

template <typename F>
INLINE void gated(float* out, const float* gate_up, int num_rows, int width, F f) {
#pragma omp parallel for schedule(static) num_threads(threads_for(int64_t(num_rows) * width, WORTH))
    for (int r = 0; r < num_rows; r++) {
        const float* gate = gate_up + int64_t(r) * 2 * width;
        map(width, gate, gate + width, out + int64_t(r) * width, f);
    }
}

}  // namespace

extern "C" void silu_mul(float* out, const float* gate_up, int num_rows, int width) {
    gated(out, gate_up, num_rows, width, [](f16 gate, f16 up) { return silu(gate) * up; });
}

extern "C" void gelu_new_mul(float* out, const float* gate_up, int num_rows, int width) {
    gated(out, gate_up, num_rows, width, [](f16 gate, f16 up) { return gelu(gate) * up; });
}

extern "C" void gelu_new(float* x, int64_t num_values) {
    constexpr int64_t PIECE = 4096;
    const int64_t pieces = (num_values + PIECE - 1) / PIECE;
#pragma omp parallel for schedule(static) num_threads(threads_for(num_values, WORTH))
    for (int64_t p = 0; p < pieces; p++) {
        float* part = x + p * PIECE;
        map(std::min(PIECE, num_values - p * PIECE), part, part, part, [](f16 value, f16) { return gelu(value); });
    }
}

// x += residual (if given); out = x / sqrt(mean(x^2) + eps) * weight.
extern "C" void rms_norm(float* out, float* x, const float* residual, const float* weight, int num_rows, int width,
                         float eps) {
#pragma omp parallel for schedule(static) num_threads(threads_for(int64_t(num_rows) * width, WORTH))
    for (int r = 0; r < num_rows; r++) {
        float *row = x + int64_t(r) * width, *target = out + int64_t(r) * width;
        if (residual) map(width, row, residual + int64_t(r) * width, row, [](f16 a, f16 b) { return a + b; });
        f16 squares = {};
        int i = 0;
        for (; i + 16 <= width; i += 16) squares += load(row + i) * load(row + i);
        float total = sum(squares);
        for (; i < width; i++) total += row[i] * row[i];
        const float factor = 1.0f / std::sqrt(total / float(width) + eps);
        map(width, row, weight, target, [factor](f16 a, f16 w) { return a * factor * w; });
    }
}

// Rotate the first `turned` features of every head in place: first half against second half.
extern "C" void rope(float* x, int64_t stride, const float* cosines, const float* sines, int num_tokens,
                     int num_heads, int dim, int turned) {
    const int half = turned / 2;
#pragma omp parallel for schedule(static) num_threads(threads_for(int64_t(num_tokens) * num_heads * dim, WORTH))
    for (int t = 0; t < num_tokens; t++) {
        const float *cosine = cosines + int64_t(t) * turned, *sine = sines + int64_t(t) * turned;
        for (int h = 0; h < num_heads; h++) {
            float *first = x + t * stride + int64_t(h) * dim, *second = first + half;
            int i = 0;
            for (; i + 16 <= half; i += 16) {
                const f16 a = load(first + i), b = load(second + i);
                store(first + i, a * load(cosine + i) - b * load(sine + i));
                store(second + i, b * load(cosine + half + i) + a * load(sine + half + i));
            }
            for (; i < half; i++) {
                const float a = first[i], b = second[i];
                first[i] = a * cosine[i] - b * sine[i];
                second[i] = b * cosine[half + i] + a * sine[half + i];
            }
        }
    }
}
