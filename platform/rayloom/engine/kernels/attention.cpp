// Keys and values into the paged cache, and attention over it.
//
// The cache of one layer: keys (blocks, key heads, dim, 16), values (blocks, key heads, 16, dim). A unit of work is
// (sequence, key head, tile of queries); its rows are all query heads of that key head for those queries, so that
// keys and values are loaded once for all of them. Softmax runs online over chunks of CHUNK keys (Milakov and
// Gimelshein, 2018; Dao, 2022). Chunks start at multiples of CHUNK and masked keys add exact zeros: a query's result
// has the same bits in whatever tile, step and company it is computed.
#include <algorithm>
#include <vector>

#include "vectors.h"

namespace {

constexpr int BLOCK = 16;
constexpr int CHUNK = 256;
constexpr int TILE_ROWS = 48;
constexpr float NONE = -__builtin_inff();
constexpr int64_t WORTH = 1 << 17;

struct Problem {
    float* out;
    const float* queries;
    int64_t query_stride;
    const void *keys, *values;
    const int32_t* tables;
    int64_t table_stride;
    const int32_t *lengths, *starts;
    int num_sequences, num_heads, num_key_heads, dim;
    float scale;
    int window;
    const float* bias;
    int num_distances;
    bool causal;
};

// One tile's rows: query and head, the keys it sees, its softmax so far.
struct Row {
    int head, position, first, last;
    float peak, total;
};

struct Scratch {
    std::vector<Row> rows;
    std::vector<float> queries, scores, mixed;
};

// Floats that one feature of a query takes in the scratch: for bfloat16 keys it is spread over half a register.
template <typename T>
constexpr int SPREAD = 1;
template <>
constexpr int SPREAD<bf16> = 8;

// scores[r][16 b + lane] = q[r] . key, of R rows and B blocks. Even and odd features are summed apart, so that enough
// sums are under way to hide the latency of each.
template <int R, int B>
INLINE void score_blocks(const float* q, int stride, const float* const* keys, int dim, float* scores) {
    f16 even[R][B] = {}, odd[R][B] = {};
    int d = 0;
    for (; d + 2 <= dim; d += 2)
        for (int b = 0; b < B; b++) {
            const f16 k0 = load(keys[b] + d * BLOCK), k1 = load(keys[b] + d * BLOCK + BLOCK);
            for (int r = 0; r < R; r++) even[r][b] += k0 * q[r * stride + d];
            for (int r = 0; r < R; r++) odd[r][b] += k1 * q[r * stride + d + 1];
        }
    if (d < dim)
        for (int b = 0; b < B; b++)
            for (int r = 0; r < R; r++) even[r][b] += load(keys[b] + d * BLOCK) * q[r * stride + d];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) store(scores + r * CHUNK + b * BLOCK, even[r][b] + odd[r][b]);
}

// The same of bfloat16 keys. A register holds two features of 16 keys: the lower half of lanes has the even features,
// `even` and `odd` are the keys.
template <int R, int B>
INLINE void score_blocks(const float* q, int stride, const bf16* const* keys, int dim, float* scores) {
    f16 even[R][B] = {}, odd[R][B] = {};
    const auto add = [&](int b, const bf16* pair, int d) {
        f16 k0, k1;
        load_pairs(pair, k0, k1);
        for (int r = 0; r < R; r++) even[r][b] += k0 * load(q + r * stride + d * 8);
        for (int r = 0; r < R; r++) odd[r][b] += k1 * load(q + r * stride + d * 8);
    };
    int d = 0;
    for (; d + 2 <= dim; d += 2)
        for (int b = 0; b < B; b++) add(b, keys[b] + d * BLOCK, d);
    if (d < dim)
        for (int b = 0; b < B; b++) {
            bf16 last[2 * BLOCK] = {};
            memcpy(last, keys[b] + d * BLOCK, BLOCK * sizeof(bf16));
            add(b, last, d);
        }
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) {
            const f16 sums = low_pairs(even[r][b], odd[r][b]) + high_pairs(even[r][b], odd[r][b]);
            store(scores + r * CHUNK + b * BLOCK, sums);
        }
}

template <int R, typename T>
void score_rows(const float* q, int stride, const T* const* keys, int num_blocks, int dim, float* scores) {
    constexpr int MOST = R <= 3 ? 4 : 2;  // two sums for each row and block have to fit the registers
    int b = 0;
    for (; b + MOST <= num_blocks; b += MOST) score_blocks<R, MOST>(q, stride, keys + b, dim, scores + b * BLOCK);
    if (MOST > 2 && b + 2 <= num_blocks) {
        score_blocks<R, 2>(q, stride, keys + b, dim, scores + b * BLOCK);
        b += 2;
    }
    if (b < num_blocks) score_blocks<R, 1>(q, stride, keys + b, dim, scores + b * BLOCK);
}

// V vectors of consecutive values; `in_order` puts sums of them in order.
template <int V>
INLINE void load_row(const float* p, f16* x) {
    for (int v = 0; v < V; v++) x[v] = load(p + v * 16);
}
template <int V>
INLINE void load_row(const bf16* p, f16* x) {
    if constexpr (V % 2)
        for (int v = 0; v < V; v++) x[v] = load(p + v * 16);
    else
        for (int v = 0; v < V; v += 2) load_pairs(p + v * 16, x[v], x[v + 1]);
}
template <int V, typename T>
INLINE void in_order(f16* x) {
    if constexpr (sizeof(T) == 2 && V % 2 == 0)
        for (int v = 0; v < V; v += 2) {
            const f16 even = x[v], odd = x[v + 1];
            x[v] = low_pairs(even, odd);
            x[v + 1] = high_pairs(even, odd);
        }
}

// mixed[r][d ...] += weights[r][key] * values[key][d ...], of R rows and V vectors of features, or of one vector of
// which only `some` features exist. Even and odd keys are summed apart, as above.
template <int R, int V, typename T>
INLINE void mix_part(const float* weights, const T* const* values, int num_keys, int dim, float* mixed, int stride,
                     int some = 0) {
    f16 even[R][V] = {}, odd[R][V] = {};
    const auto add = [&](f16(&sums)[R][V], const T* row, const float* weight) {
        f16 x[V];
        T lanes[16] = {};
        if (some) {
            memcpy(lanes, row, some * sizeof(T));
            row = lanes;
        }
        load_row<V>(row, x);
        for (int v = 0; v < V; v++)
            for (int r = 0; r < R; r++) sums[r][v] += x[v] * weight[r * CHUNK];
    };
    for (int first = 0; first < num_keys; first += BLOCK) {
        const T* rows = values[first / BLOCK];
        const int count = std::min(BLOCK, num_keys - first);
        for (int key = 0; key + 2 <= count; key += 2) {
            add(even, rows + key * dim, weights + first + key);
            add(odd, rows + (key + 1) * dim, weights + first + key + 1);
        }
        if (count % 2) add(even, rows + (count - 1) * dim, weights + first + count - 1);
    }
    for (int r = 0; r < R; r++) {
        f16 sums[V];
        for (int v = 0; v < V; v++) sums[v] = even[r][v] + odd[r][v];
        in_order<V, T>(sums);
        for (int v = 0; v < V; v++) {
            float* target = mixed + r * stride + v * 16;
            store(target, load(target) + sums[v]);
        }
    }
}

template <int R, typename T>
void mix_rows(const float* weights, const T* const* values, int num_keys, int dim, float* mixed, int stride) {
    const T* part[CHUNK / BLOCK];
    int d = 0;
    const auto at = [&](int offset) {
        for (int b = 0; b * BLOCK < num_keys; b++) part[b] = values[b] + offset;
        return part;
    };
    if constexpr (R <= 3)
        for (; d + 64 <= dim; d += 64) mix_part<R, 4>(weights, at(d), num_keys, dim, mixed + d, stride);
    for (; d + 32 <= dim; d += 32) mix_part<R, 2>(weights, at(d), num_keys, dim, mixed + d, stride);
    for (; d + 16 <= dim; d += 16) mix_part<R, 1>(weights, at(d), num_keys, dim, mixed + d, stride);
    if (d < dim) mix_part<R, 1>(weights, at(d), num_keys, dim, mixed + d, stride, dim - d);
}

// Add the bias by distance to one row's scores of 16 keys from key0 on; distances below 0 are masked later.
INLINE f16 with_bias(f16 scores, const float* bias, int last, int position, int key0) {
    const int farthest = position - key0;
    if (farthest - 15 >= last) return scores + bias[last];
    if (farthest >= 15 && farthest <= last) {
        const f16 rising = load(bias + farthest - 15);
        return scores + __builtin_shuffle(rising, (i16){15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0});
    }
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = bias[std::min(std::max(farthest - i, 0), last)];
    return scores + load(lanes);
}

// Mask, bias and exponentials of one row's chunk in place; rescales what the row has mixed so far.
void soften(const Problem& p, Row& row, float* scores, int key0, int num_blocks, float* mixed) {
    const float* bias = p.bias ? p.bias + int64_t(row.head) * p.num_distances : nullptr;
    const i16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    f16 peaks = all(NONE);
    for (int b = 0; b < num_blocks; b++) {
        const int base = key0 + b * BLOCK;
        f16 x = load(scores + b * BLOCK);
        if (bias) x = with_bias(x, bias, p.num_distances - 1, row.position, base);
        const i16 keys = lanes + base;
        x = (keys >= row.first) & (keys < row.last) ? x : all(NONE);
        store(scores + b * BLOCK, x);
        peaks = x > peaks ? x : peaks;
    }
    const float peak = std::max(row.peak, largest(peaks));
    if (peak == NONE) {
        std::fill(scores, scores + num_blocks * BLOCK, 0.0f);
        return;
    }
    f16 totals = {};
    for (int b = 0; b < num_blocks; b++) {
        const f16 x = exponential(load(scores + b * BLOCK) - peak);
        store(scores + b * BLOCK, x);
        totals += x;
    }
    if (peak > row.peak && row.total > 0.0f) {
        const float shrink = exponential(all(row.peak - peak))[0];
        row.total *= shrink;
        for (int d = 0; d < p.dim; d++) mixed[d] *= shrink;
    }
    row.total += sum(totals);
    row.peak = peak;
}

#define BY_ROWS(count, call)         \
    switch (count) {                 \
        case 1: call(1); break;      \
        case 2: call(2); break;      \
        case 3: call(3); break;      \
        case 4: call(4); break;      \
        case 5: call(5); break;      \
        default: call(6); break;     \
    }

template <typename T>
void attend_chunk(const Problem& p, Scratch& scratch, const int32_t* table, int key_head, int key0, int last_key) {
    const T *keys[CHUNK / BLOCK], *values[CHUNK / BLOCK];
    const int num_keys = std::min(CHUNK, last_key - key0), num_blocks = (num_keys + BLOCK - 1) / BLOCK;
    for (int b = 0; b < num_blocks; b++) {
        const int64_t offset = (int64_t(table[key0 / BLOCK + b]) * p.num_key_heads + key_head) * p.dim * BLOCK;
        keys[b] = static_cast<const T*>(p.keys) + offset;
        values[b] = static_cast<const T*>(p.values) + offset;
    }
    const int num_rows = int(scratch.rows.size()), stride = (p.dim + 15) / 16 * 16;
    const int wide = stride * SPREAD<T>;
    float *queries = scratch.queries.data(), *scores = scratch.scores.data(), *mixed = scratch.mixed.data();
    for (int r = 0; r < num_rows; r += 6) {
        const int count = std::min(6, num_rows - r);
#define CALL(R) score_rows<R>(queries + r * wide, wide, keys, num_blocks, p.dim, scores + r * CHUNK)
        BY_ROWS(count, CALL)
#undef CALL
    }
    for (int r = 0; r < num_rows; r++)
        soften(p, scratch.rows[r], scores + r * CHUNK, key0, num_blocks, mixed + r * stride);
    for (int r = 0; r < num_rows; r += 6) {
        const int count = std::min(6, num_rows - r);
#define CALL(R) mix_rows<R>(scores + r * CHUNK, values, num_keys, p.dim, mixed + r * stride, stride)
        BY_ROWS(count, CALL)
#undef CALL
    }
}

template <typename T>
void attend_tile(const Problem& p, Scratch& scratch, int s, int key_head, int query0, int num_queries) {
    const int start = p.starts[s], count = p.starts[s + 1] - start, length = p.lengths[s];
    const int group = p.num_heads / p.num_key_heads, stride = (p.dim + 15) / 16 * 16, num_rows = num_queries * group;
    scratch.rows.resize(num_rows);
    scratch.queries.resize(num_rows * stride * SPREAD<T>);
    scratch.scores.resize(num_rows * CHUNK);
    scratch.mixed.assign(num_rows * stride, 0.0f);
    for (int r = 0; r < num_rows; r++) {
        const int query = query0 + r / group, head = key_head * group + r % group;
        const int position = length - count + query, last = p.causal ? position + 1 : length;
        const int first = p.window ? std::max(0, position - p.window + 1) : 0;
        scratch.rows[r] = {head, position, first, last, NONE, 0.0f};
        const float* source = p.queries + (start + query) * p.query_stride + int64_t(head) * p.dim;
        float* target = scratch.queries.data() + r * stride * SPREAD<T>;
        for (int d = 0; d < p.dim; d++)
            for (int i = 0; i < SPREAD<T>; i++) target[d * SPREAD<T> + i] = source[d] * p.scale;
        // The place after an odd last feature meets keys of 0.
        if (p.dim % 2) std::fill_n(target + p.dim * SPREAD<T>, SPREAD<T>, 0.0f);
    }
    const int last_key = scratch.rows.back().last;
    for (int key0 = scratch.rows.front().first / CHUNK * CHUNK; key0 < last_key; key0 += CHUNK)
        attend_chunk<T>(p, scratch, p.tables + s * p.table_stride, key_head, key0, last_key);
    for (int r = 0; r < num_rows; r++) {
        const Row& row = scratch.rows[r];
        const float factor = row.total > 0.0f ? 1.0f / row.total : row.total;
        float* target = p.out + (int64_t(start + query0 + r / group) * p.num_heads + row.head) * p.dim;
        for (int d = 0; d < p.dim; d++) target[d] = scratch.mixed[r * stride + d] * factor;
    }
}

template <typename T>
void attend(const Problem& p, int max_queries) {
    const int group = p.num_heads / p.num_key_heads, tile = std::max(1, TILE_ROWS / group);
    const int num_tiles = std::max(1, (max_queries + tile - 1) / tile);
    int64_t operations = 0;
    for (int s = 0; s < p.num_sequences; s++)
        operations += int64_t(p.starts[s + 1] - p.starts[s]) * p.lengths[s] * p.num_heads * p.dim;
    const int num_units = p.num_sequences * p.num_key_heads * num_tiles;
#pragma omp parallel num_threads(threads_for(operations, WORTH))
    {
        static thread_local Scratch scratch;
#pragma omp for schedule(dynamic)
        for (int unit = 0; unit < num_units; unit++) {
            const int s = unit / (p.num_key_heads * num_tiles), rest = unit % (p.num_key_heads * num_tiles);
            const int key_head = rest / num_tiles, query0 = rest % num_tiles * tile;
            const int count = std::min(tile, p.starts[s + 1] - p.starts[s] - query0);
            if (count > 0) attend_tile<T>(p, scratch, s, key_head, query0, count);
        }
    }
}

template <typename T>
void write(const float* keys, int64_t key_stride, const float* values, int64_t value_stride, const int64_t* slots,
           T* key_cache, T* value_cache, int num_tokens, int num_heads, int dim) {
    const int64_t operations = int64_t(num_tokens) * num_heads * dim;
#pragma omp parallel for schedule(static) num_threads(threads_for(operations, 1 << 15))
    for (int t = 0; t < num_tokens; t++) {
        const int64_t block = slots[t] / BLOCK, place = slots[t] % BLOCK;
        for (int h = 0; h < num_heads; h++) {
            const float *key = keys + t * key_stride + h * dim, *value = values + t * value_stride + h * dim;
            T* key_target = key_cache + (block * num_heads + h) * dim * BLOCK + place;
            T* value_target = value_cache + ((block * num_heads + h) * BLOCK + place) * dim;
            for (int d = 0; d < dim; d++) narrow(key[d], key_target + d * BLOCK);
            for (int d = 0; d < dim; d++) narrow(value[d], value_target + d);
        }
    }
}

}  // namespace

extern "C" void write_kv(const float* keys, int64_t key_stride, const float* values, int64_t value_stride,
                         const int64_t* slots, void* key_cache, void* value_cache, int num_tokens, int num_heads,
                         int dim, int is_bf16) {
    if (is_bf16)
        write(keys, key_stride, values, value_stride, slots, static_cast<bf16*>(key_cache),
              static_cast<bf16*>(value_cache), num_tokens, num_heads, dim);
    else
        write(keys, key_stride, values, value_stride, slots, static_cast<float*>(key_cache),
              static_cast<float*>(value_cache), num_tokens, num_heads, dim);
}

// Whole blocks of several tensors of blocks; no target is a source.
extern "C" void copy_blocks(char* const* tensors, int num_tensors, int64_t block_bytes, const int64_t* sources,
                            const int64_t* targets, int num_pairs) {
    const int num_units = num_tensors * num_pairs;
#pragma omp parallel for schedule(static) num_threads(threads_for(num_units * block_bytes, 1 << 20))
    for (int unit = 0; unit < num_units; unit++) {
        char* tensor = tensors[unit / num_pairs];
        const int pair = unit % num_pairs;
        memcpy(tensor + targets[pair] * block_bytes, tensor + sources[pair] * block_bytes, block_bytes);
    }
}

extern "C" void paged_attention(float* out, const float* queries, int64_t query_stride, const void* keys,
                                const void* values, int is_bf16, const int32_t* tables, int64_t table_stride,
                                const int32_t* lengths, const int32_t* starts, int num_sequences, int num_heads,
                                int num_key_heads, int dim, float scale, int window, const float* bias,
                                int num_distances, int causal, int max_queries) {
    const Problem problem = {out,    queries,       query_stride, keys,          values, tables, table_stride,
                             lengths, starts,       num_sequences, num_heads,    num_key_heads, dim, scale,
                             window, bias,          num_distances, causal != 0};
    if (is_bf16)
        attend<bf16>(problem, max_queries);
    else
        attend<float>(problem, max_queries);
}
