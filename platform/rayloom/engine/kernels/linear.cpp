// Linear layers with int8, bfloat16 and float32 weights; float32 in and out, quantisation and bias included.
//
// Weights lie in panels of 16 output features: (panels, steps, 16, lanes), lanes = 4 int8, 2 bfloat16 or 1 float32
// consecutive input features: what AMX tiles, AVX512-VNNI, AVX512-BF16 and AVX-512 read. Inputs are padded with zeros
// to `depth`, a multiple of 64 bytes. Compiled without contraction into fused multiply-adds, so that int8 results have
// the bits of the torch path. Rows never influence each other. (With AMX, float32 is float_tiles.cpp's.)
#include <algorithm>
#include <cmath>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "buffers.h"
#include "tiles.h"
#include "vectors.h"

#define RESTRICT __restrict__

namespace {

constexpr int64_t WORTH = 1 << 19;  // multiply-adds; a thread team costs some microseconds

// ---- number formats -------------------------------------------------------------------------------------------

struct Int8 {
    typedef int8_t value;
    typedef int32_t total;
    static constexpr int LANES = 4;
};

struct Bf16 {
    typedef bf16 value;
    typedef float total;
    static constexpr int LANES = 2;
};

struct Fp32 {
    typedef float value;
    typedef float total;
    static constexpr int LANES = 1;
};

// A matrix product: inputs (rows, stride) times panels. `finish(row, count, panel, sums)` takes (count, 16) sums of
// the rows from `row` on and one panel.
struct Shape {
    int rows, width, depth;  // width: output features; depth: padded input features
};

const bool HAS_TILES = request_tiles();

// ---- AMX: 16 x 16 sums per tile ---------------------------------------------------------------------------------

#if defined(__AMX_TILE__)

#define MULTIPLY(format, c, a, b)                   \
    do {                                            \
        if constexpr (std::is_same_v<format, Int8>) \
            _tile_dpbssd(c, a, b);                  \
        else                                        \
            _tile_dpbf16ps(c, a, b);                \
    } while (0)

// Weights are read once, from memory, in two streams: tile loads alone keep too few lines in flight.
constexpr int AHEAD = 8;  // tiles

INLINE void fetch(const char* w, int64_t panel, int k, int steps) {
    // After its own panel a stream goes on two panels further; the other stream has the one between.
    const char* next = w + (k + AHEAD) * 1024 + (k + AHEAD < steps ? 0 : panel);
    for (int line = 0; line < 1024; line += 64) _mm_prefetch(next + line, _MM_HINT_T0);
}

// Two tiles of rows times two panels. Either may be one only. The first rows of a panel fetch ahead.
template <typename F, bool TWO_ROWS, bool TWO_PANELS>
INLINE void tiles_2x2(bool fetching, const char* x, int64_t stride, const char* w, int64_t panel, int steps, char* totals) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < steps; k++) {
        if (fetching) {
            fetch(w, panel, k, steps);
            if (TWO_PANELS) fetch(w + panel, panel, k, steps);
        }
        _tile_loadd(6, w + k * 1024, 64);
        if (TWO_PANELS) _tile_loadd(7, w + panel + k * 1024, 64);
        _tile_loadd(4, x + k * 64, stride);
        MULTIPLY(F, 0, 4, 6);
        if (TWO_PANELS) MULTIPLY(F, 1, 4, 7);
        if (TWO_ROWS) {
            _tile_loadd(5, x + 16 * stride + k * 64, stride);
            MULTIPLY(F, 2, 5, 6);
            if (TWO_PANELS) MULTIPLY(F, 3, 5, 7);
        }
    }
    _tile_stored(0, totals, 64);
    if (TWO_PANELS) _tile_stored(1, totals + 1024, 64);
    if (TWO_ROWS) _tile_stored(2, totals + 2048, 64);
    if (TWO_ROWS && TWO_PANELS) _tile_stored(3, totals + 3072, 64);
}

template <typename F, typename Finish>
void product_tiles(const char* x, int64_t stride, const char* w, const Shape& s, int first, int last, Finish finish) {
    TileConfig config;
    if (s.rows < 16) std::fill(config.rows, config.rows + 6, uint8_t(s.rows));  // all but the weights' tiles
    _tile_loadconfig(&config);
    alignas(64) typename F::total totals[2][2][16][16];
    const int steps = s.depth * int(sizeof(typename F::value)) / 64;
    const int64_t panel = int64_t(steps) * 1024;
    for (int p = first; p < last; p += 2) {
        const bool two_panels = p + 1 < last;
        for (int row = 0; row < s.rows; row += 32) {
            const bool two_rows = row + 16 < s.rows;
            const char *a = x + row * stride, *b = w + p * panel;
            char* c = reinterpret_cast<char*>(totals);
            if (two_rows && two_panels)
                tiles_2x2<F, true, true>(row == 0, a, stride, b, panel, steps, c);
            else if (two_rows)
                tiles_2x2<F, true, false>(row == 0, a, stride, b, panel, steps, c);
            else if (two_panels)
                tiles_2x2<F, false, true>(row == 0, a, stride, b, panel, steps, c);
            else
                tiles_2x2<F, false, false>(row == 0, a, stride, b, panel, steps, c);
            for (int half = 0; half <= int(two_rows); half++) {
                const int r = row + half * 16, count = std::min(16, s.rows - r);
                finish(r, count, p, totals[half][0][0]);
                if (two_panels) finish(r, count, p + 1, totals[half][1][0]);
            }
        }
    }
    _tile_release();
}

#endif

// ---- vectors: rows times panels in registers --------------------------------------------------------------------

constexpr int GROUP = 8;  // rows
// Panels that so many rows meet at once: up to 24 sums, which 32 registers hold beside weights and the input they meet.
constexpr int strip_for(int rows) { return std::min(8, 24 / rows); }
constexpr int FEW = 4;    // rows that wait for memory alone: the machine itself fetches ahead best
constexpr int CHUNK = 256;           // steps that are added up before they join the total: float sums stay accurate

// sums[lane] += the dot product of a step's inputs, which fill `word`, with those of each of 16 features.
INLINE void accumulate(Int8, i16& sums, int32_t word, const char* w) {
#if defined(__AVX512VNNI__)
    sums = (i16)_mm512_dpbusd_epi32((__m512i)sums, _mm512_set1_epi32(word), _mm512_loadu_si512(w));
#else
    int8_t x[4];
    memcpy(x, &word, 4);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 4; j++) sums[i] += int32_t(x[j]) * int32_t(int8_t(w[i * 4 + j]));
#endif
}

INLINE void accumulate(Bf16, f16& sums, int32_t word, const char* w) {
#if defined(__AVX512BF16__)
    sums = (f16)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(word), (__m512bh)_mm512_loadu_si512(w));
#else
    u16 words;
    memcpy(&words, w, 64);
    const bf16 x[2] = {{uint16_t(word)}, {uint16_t(uint32_t(word) >> 16)}};
    sums += (f16)(words << 16) * widen(x[0]);
    sums += (f16)(words & 0xffff0000u) * widen(x[1]);
#endif
}

INLINE void accumulate(Fp32, f16& sums, int32_t word, const char* w) {
    float x;
    memcpy(&x, &word, 4);
#if defined(__AVX512F__)
    sums = (f16)_mm512_fmadd_ps(_mm512_set1_ps(x), _mm512_loadu_ps(w), (__m512)sums);
#else
    sums += load(reinterpret_cast<const float*>(w)) * x;
#endif
}

// VNNI multiplies unsigned by signed: its inputs are lifted by 128, and `lifted` is what that adds to 16 sums.
INLINE void lift(int8_t* x, int depth) {
#if defined(__AVX512VNNI__)
    for (int i = 0; i < depth; i++) x[i] ^= int8_t(0x80);
#else
    (void)x, (void)depth;
#endif
}
INLINE i16 lifted(Int8, const char* w, int steps) {
    i16 sums[4] = {};  // at once: each addition waits for the one before
#if defined(__AVX512VNNI__)
    for (int k = 0; k < steps; k += 4)  // depths are multiples of 64 bytes
        for (int i = 0; i < 4; i++)
            sums[i] = (i16)_mm512_dpbusd_epi32((__m512i)sums[i], _mm512_set1_epi8(1), _mm512_loadu_si512(w + (k + i) * 64));
#else
    (void)w, (void)steps;
#endif
    return (sums[0] + sums[1] + sums[2] + sums[3]) * 128;
}
INLINE f16 lifted(Bf16, const char*, int) { return (f16){}; }
INLINE f16 lifted(Fp32, const char*, int) { return (f16){}; }

// Panels next to each other, and what of the memory behind them is wanted soon.
struct Strip {
    const char *start, *next;
    int64_t panel;  // bytes
    int steps, pace;  // of `next`: lines per step
};

// totals[p][r] = row r times panel p. A call's weights are read from memory once: each group of rows fetches a share of
// the next strip's into the second cache.
template <typename F, int R, int P>
void multiply(const char* x, int64_t stride, const Strip& strip, typename F::total (*totals)[GROUP][16]) {
    typedef typename F::total vector __attribute__((vector_size(64)));
    const char* next = strip.next;
    for (int chunk = 0; chunk < strip.steps; chunk += CHUNK) {
        vector sums[R][P] = {};
        for (int k = chunk; k < std::min(chunk + CHUNK, strip.steps); k++) {
            for (int i = 0; i < strip.pace; i++, next += 64) __builtin_prefetch(next, 0, 2);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                int32_t word;
                memcpy(&word, x + r * stride + k * 4, 4);
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) accumulate(F(), sums[r][p], word, strip.start + p * strip.panel + k * 64);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) {
                vector before = {};
                if (chunk) memcpy(&before, totals[p][r], 64);
                const vector total = before + sums[r][p];
                memcpy(totals[p][r], &total, 64);
            }
        }
    }
}

template <typename F>
using Multiply = void (*)(const char*, int64_t, const Strip&, typename F::total (*)[GROUP][16]);

// `multiply` of so many rows and panels.
template <typename F, int R, int P>
Multiply<F> multiply_panels(int panels) {
    if constexpr (P > 1)
        if (panels < P) return multiply_panels<F, R, P - 1>(panels);
    return multiply<F, R, P>;
}
template <typename F, int R = GROUP>
Multiply<F> multiply_for(int rows, int panels) {
    if constexpr (R > 1)
        if (rows < R) return multiply_for<F, R - 1>(rows, panels);
    return multiply_panels<F, R, strip_for(R)>(panels);
}

template <typename F, typename Finish>
void product_vectors(const char* x, int64_t stride, const char* w, const Shape& s, int first, int last, Finish finish) {
    typedef typename F::total vector __attribute__((vector_size(64)));
    alignas(64) typename F::total totals[strip_for(1)][GROUP][16];
    vector offsets[strip_for(1)];
    const int steps = s.depth / F::LANES, groups = (s.rows + GROUP - 1) / GROUP;
    const int strip_panels = strip_for((s.rows + groups - 1) / groups);
    const int64_t panel = int64_t(steps) * 64;
    for (int p = first; p < last; p += strip_panels) {
        const int panels = std::min(strip_panels, last - p), later = std::min(strip_panels, last - p - panels);
        const int share = s.rows > FEW ? (later + groups - 1) / groups : 0;
        for (int i = 0; i < panels; i++) offsets[i] = lifted(F(), w + (p + i) * panel, steps);
        for (int g = 0; g < groups; g++) {
            const int row = s.rows * g / groups, count = s.rows * (g + 1) / groups - row;
            const int fetched = std::min(share * g, later), pace = std::min(share, later - fetched);
            const Strip strip = {w + p * panel, w + (p + panels + fetched) * panel, panel, steps, pace};
            multiply_for<F>(count, panels)(x + row * stride, stride, strip, totals);
            for (int i = 0; i < panels; i++) {
                for (int r = 0; r < count; r++) {
                    vector total;
                    memcpy(&total, totals[i][r], 64);
                    total -= offsets[i];
                    memcpy(totals[i][r], &total, 64);
                }
                finish(row, count, p + i, totals[i][0]);
            }
        }
    }
}

template <typename F, typename Finish>
INLINE void product(const char* x, int64_t stride, const char* w, const Shape& s, int first, int last, Finish finish) {
#if defined(__AMX_TILE__)
    if constexpr (!std::is_same_v<F, Fp32>)
        if (HAS_TILES) return product_tiles<F>(x, stride, w, s, first, last, finish);
#endif
    product_vectors<F>(x, stride, w, s, first, last, finish);
}

// ---- inputs -----------------------------------------------------------------------------------------------------

// Rows 80 % of a page apart would share cache sets; one line more spreads them. Rows are padded to whole tiles.
INLINE int64_t stride_for(int64_t bytes) { return bytes % 1024 == 0 ? bytes + 64 : bytes; }

// Returns the row's scale; q = round(x * factors * 127 / largest). The largest is found on bit patterns: that keeps nan.
float quantise(const float* RESTRICT x, const float* RESTRICT factors, int n, int depth, int8_t* RESTRICT q) {
    uint32_t bits = 0;
    for (int i = 0; i < n; i++) {
        uint32_t word;
        const float value = x[i] * factors[i];
        memcpy(&word, &value, 4);
        word &= 0x7fffffffu;
        bits = word > bits ? word : bits;
    }
    float largest;
    memcpy(&largest, &bits, 4);
    const float inverse = largest > 1e-30f ? 1.0f / largest * 127.0f : 0.0f;  // rounded twice, as torch does
    // Adding 1.5 * 2^23 rounds to nearest even; the low byte of the sum is the integer.
    for (int i = 0; i < n; i++) {
        const float shifted = x[i] * factors[i] * inverse + 12582912.0f;
        uint32_t word;
        memcpy(&word, &shifted, 4);
        q[i] = int8_t(word);
    }
    memset(q + n, 0, depth - n);
    return largest / 127.0f;
}

void round_row(const float* RESTRICT x, int n, int depth, bf16* RESTRICT y) {
    for (int i = 0; i < n; i++) narrow(x[i], y + i);
    memset(y + n, 0, (depth - n) * sizeof(bf16));
}

// `count` rows of one panel into the output, `make(r, sums)` each; the last panel may hold fewer than 16 features.
template <typename T, typename Make>
INLINE void put(float* out, const Shape& s, int row, int count, int panel, const T* sums, Make make) {
    float* target = out + int64_t(row) * s.width + panel * 16;
    const int features = s.width - panel * 16;
    if (features >= 16) {
        for (int r = 0; r < count; r++) store(target + int64_t(r) * s.width, make(r, sums + r * 16));
        return;
    }
    for (int r = 0; r < count; r++) {
        float lanes[16];
        store(lanes, make(r, sums + r * 16));
        std::copy(lanes, lanes + features, target + int64_t(r) * s.width);
    }
}

// Prepare all rows, then multiply: two loops in one team. `Finish` as above, `prepare(row, target)` fills one row.
template <typename F, typename Prepare, typename Finish>
INLINE void linear(const Shape& s, const void* weights, Prepare prepare, Finish finish) {
    if (s.rows == 0) return;
    static thread_local Buffer buffer;
    const int64_t bytes = s.depth * int64_t(sizeof(typename F::value)), stride = stride_for(bytes);
    const int padded = (s.rows + 15) / 16 * 16, num_panels = (s.width + 15) / 16;
    char* x = buffer.at_least(size_t(padded * stride));
    const int64_t operations = int64_t(s.rows) * s.width * s.depth;
#pragma omp parallel num_threads(threads_for(operations, WORTH))
    {
        const int team = omp_get_num_threads(), me = omp_get_thread_num();
        if (team == 1 || s.rows < 8) {
            // Too little to share out.
            if (me == 0)
                for (int row = 0; row < s.rows; row++) prepare(row, x + row * stride);
        } else {
            for (int row = me; row < s.rows; row += team) prepare(row, x + row * stride);
        }
        if (team > 1) {
#pragma omp barrier
        }
        const int first = num_panels * int64_t(me) / team, last = num_panels * int64_t(me + 1) / team;
        product<F>(x, stride, static_cast<const char*>(weights), s, first, last, finish);
    }
}

}  // namespace

// Room for the scales of a call's rows, one per calling thread.
static float* row_scales(int rows) {
    static thread_local Buffer buffer;
    return reinterpret_cast<float*>(buffer.at_least(sizeof(float) * size_t(rows)));
}

extern "C" void linear_int8(float* out, const float* x, const float* factors, const void* weights, const float* scales, const float* bias,
                            int rows, int in_features, int depth, int width) {
    const Shape s = {rows, width, depth};
    float* row_scale = row_scales(rows);
    const auto prepare = [=](int row, char* target) {
        int8_t* integers = reinterpret_cast<int8_t*>(target);
        row_scale[row] = quantise(x + int64_t(row) * in_features, factors, in_features, depth, integers);
        if (!HAS_TILES) lift(integers, depth);
    };
    // Scales and bias are padded to whole panels.
    const auto finish = [=](int row, int count, int panel, const int32_t* sums) {
        const f16 scale = load(scales + panel * 16), shift = bias ? load(bias + panel * 16) : all(-0.0f);
        put(out, s, row, count, panel, sums, [=](int r, const int32_t* totals) {
            i16 integers;
            memcpy(&integers, totals, 64);
            return __builtin_convertvector(integers, f16) * (scale * row_scale[row + r]) + shift;
        });
    };
    linear<Int8>(s, weights, prepare, finish);
}

// The two formats whose sums are the results, but for the bias.
template <typename F, typename Prepare>
static void linear_floats(float* out, const Shape& s, const void* weights, const float* bias, Prepare prepare) {
    const auto finish = [=](int row, int count, int panel, const float* sums) {
        const f16 shift = bias ? load(bias + panel * 16) : all(-0.0f);
        put(out, s, row, count, panel, sums, [=](int, const float* totals) { return load(totals) + shift; });
    };
    linear<F>(s, weights, prepare, finish);
}

extern "C" void linear_bf16(float* out, const float* x, const void* weights, const float* bias, int rows,
                            int in_features, int depth, int width) {
    linear_floats<Bf16>(out, {rows, width, depth}, weights, bias, [=](int row, char* target) {
        round_row(x + int64_t(row) * in_features, in_features, depth, reinterpret_cast<bf16*>(target));
    });
}

extern "C" void linear_fp32(float* out, const float* x, const void* weights, const float* bias, int rows,
                            int in_features, int depth, int width) {
    linear_floats<Fp32>(out, {rows, width, depth}, weights, bias, [=](int row, char* target) {
        memcpy(target, x + int64_t(row) * in_features, in_features * sizeof(float));
        memset(target + in_features * sizeof(float), 0, (depth - in_features) * sizeof(float));
    });
}
