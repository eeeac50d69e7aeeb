// Sixteen lanes in GCC's vector extensions: one AVX-512 register where there is one, several smaller ones elsewhere.
// Also the threshold below which a thread team costs more than it brings.
#pragma once
#include <cstdint>
#include <cstring>
#include <omp.h>

#define INLINE static inline __attribute__((always_inline))

typedef float f16 __attribute__((vector_size(64)));
typedef float f16_any __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef uint16_t h16_any __attribute__((vector_size(32), aligned(2), may_alias));

struct bf16 {
    uint16_t bits;
};

INLINE f16 load(const float* p) { return *reinterpret_cast<const f16_any*>(p); }
INLINE f16 load(const bf16* p) {
    return (f16)(__builtin_convertvector(*reinterpret_cast<const h16_any*>(p), u16) << 16);
}
INLINE void store(float* p, f16 x) { *reinterpret_cast<f16_any*>(p) = x; }
INLINE f16 all(float x) { return x - (f16){}; }

INLINE float widen(float x) { return x; }
INLINE float widen(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

INLINE void narrow(float x, float* y) { *y = x; }
// Round to nearest, ties to even; not-a-number stays one: as torch does.
INLINE void narrow(float x, bf16* y) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    y->bits = (bits & 0x7fffffffu) > 0x7f800000u ? uint16_t(0x7fc0) : uint16_t(rounded);
}

// Reductions in a fixed tree, so that results do not depend on the compiler's mood.
INLINE float sum(f16 x) {
    float lanes[16];
    store(lanes, x);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}
INLINE float largest(f16 x) {
    float lanes[16];
    store(lanes, x);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    return lanes[0];
}

// Two bfloat16 next to each other are one 32-bit word: a shift gives the first, a mask the second. That is half the
// work of widening sixteen at a time; what it gives is 16 even and 16 odd places, put in order at the end.
INLINE void load_pairs(const bf16* p, f16& even, f16& odd) {
    u16 words;
    memcpy(&words, p, 64);
    even = (f16)(words << 16);
    odd = (f16)(words & 0xffff0000u);
}
INLINE f16 low_pairs(f16 even, f16 odd) {
    return __builtin_shuffle(even, odd, (i16){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
}
INLINE f16 high_pairs(f16 even, f16 odd) {
    return __builtin_shuffle(even, odd, (i16){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}

// e^x to about one unit in the last place (Cephes' polynomial); 0 below -87, held at e^88 above.
INLINE f16 exponential(f16 x) {
    const f16 magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const f16 held = x > 88.0f ? all(88.0f) : (x < -87.0f ? all(-87.0f) : x);
    const f16 shifted = held * 1.44269504088896341f + magic;
    const i16 power = (i16)shifted - (i16)magic;
    const f16 n = shifted - magic;
    const f16 r = (held - n * 0.693359375f) - n * -2.12194440e-4f;
    f16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const f16 y = (p * (r * r) + r + 1.0f) * (f16)((power + 127) << 23);
    return x < -87.0f ? (f16){} : y;
}

// Threads for so many elementary operations: one where waking others costs more than it brings.
INLINE int threads_for(int64_t operations, int64_t worth) {
    return operations < worth || omp_in_parallel() ? 1 : omp_get_max_threads();
}
