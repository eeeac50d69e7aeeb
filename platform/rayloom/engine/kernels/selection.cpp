// Log-probabilities of rows of logits, and the largest scores of rows. Everything float32, rows contiguous.
//
// The largest are found without ordering a row: it is cut into cells; the count-th largest of the cells' maxima is
// reached by `count` values at least, so only cells that reach it are looked at again. Log-probabilities are made of
// few values only, by the same operations as those of whole rows: a row's ranking has the same bits either way.
#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "vectors.h"

namespace {

constexpr int CELL = 256;
constexpr int64_t WORTH = 1 << 15;
constexpr float NONE = -__builtin_inff(), LOWEST = -__FLT_MAX__;

// What is taken off a row's logits.
struct Shift {
    float peak, logsum;
    float of(float x) const { return (x - peak) - logsum; }
};

INLINE f16 load_some(const float* p, int count, float fill) {
    float lanes[16];
    std::fill(lanes, lanes + 16, fill);
    std::copy(p, p + count, lanes);
    return load(lanes);
}

float largest_of(const float* x, int count) {
    f16 peaks = all(NONE);
    int i = 0;
    for (; i + 16 <= count; i += 16) {
        const f16 values = load(x + i);
        peaks = values > peaks ? values : peaks;
    }
    if (i < count) {
        const f16 values = load_some(x + i, count - i, NONE);
        peaks = values > peaks ? values : peaks;
    }
    return largest(peaks);
}

// Sums of a cell are float32, sums of cells float64.
Shift shift_of(const float* x, int width, float peak) {
    double total = 0.0;
    peak = std::max(peak, LOWEST);
    for (int start = 0; start < width; start += CELL) {
        const float* cell = x + start;
        const int count = std::min(CELL, width - start);
        f16 sums = {};
        int i = 0;
        for (; i + 16 <= count; i += 16) sums += exponential(load(cell + i) - peak);
        if (i < count) sums += exponential(load_some(cell + i, count - i, NONE) - peak);
        total += double(sum(sums));
    }
    // The peak alone adds 1; less is a row without any finite logit, which stays -inf.
    return {peak, float(std::log(total < 1.0 ? 1.0 : total))};
}

void find_maxima(const float* x, int width, std::vector<float>& maxima) {
    maxima.clear();
    for (int start = 0; start < width; start += CELL)
        maxima.push_back(largest_of(x + start, std::min(CELL, width - start)));
}

// The best so far, best first, the first of equals first.
struct Best {
    float* values;
    int64_t* ids;
    int most, held;
    void offer(float value, int64_t id) {
        if (held == most && !(value > values[most - 1])) return;
        int place = held < most ? held++ : most - 1;
        for (; place > 0 && value > values[place - 1]; place--) {
            values[place] = values[place - 1];
            ids[place] = ids[place - 1];
        }
        values[place] = value;
        ids[place] = id;
    }
};

void find_best(const float* x, int width, Shift shift, const std::vector<float>& maxima, Best best) {
    float bound = LOWEST;
    if (int(maxima.size()) >= best.most) {
        static thread_local std::vector<float> order;
        order = maxima;
        std::nth_element(order.begin(), order.begin() + (best.most - 1), order.end(), std::greater<float>());
        bound = std::max(bound, shift.of(order[best.most - 1]));
    }
    for (size_t cell = 0; cell < maxima.size(); cell++) {
        if (!(shift.of(maxima[cell]) >= bound)) continue;
        const int start = int(cell) * CELL, end = std::min(start + CELL, width);
        for (int i = start; i < end; i++)
            if (shift.of(x[i]) >= bound) best.offer(shift.of(x[i]), i);
    }
}

}  // namespace

// out = x - log(sum(exp(x))) of every row.
extern "C" void log_softmax(float* out, const float* x, int num_rows, int width) {
#pragma omp parallel for schedule(static) num_threads(threads_for(int64_t(num_rows) * width, WORTH))
    for (int r = 0; r < num_rows; r++) {
        const float* row = x + int64_t(r) * width;
        float* target = out + int64_t(r) * width;
        const Shift shift = shift_of(row, width, largest_of(row, width));
        for (int i = 0; i < width; i++) target[i] = shift.of(row[i]);
    }
}

// The `count` largest values of every row, or of its log-probabilities; -inf and place 0 where there are fewer above.
extern "C" void largest_rows(float* values, int64_t* ids, const float* x, int num_rows, int width, int count,
                             int as_log_probs) {
#pragma omp parallel num_threads(threads_for(int64_t(num_rows) * width, WORTH))
    {
        std::vector<float> maxima;
#pragma omp for schedule(static)
        for (int r = 0; r < num_rows; r++) {
            const float* row = x + int64_t(r) * width;
            const Best best = {values + int64_t(r) * count, ids + int64_t(r) * count, count, 0};
            std::fill(best.values, best.values + count, NONE);
            std::fill(best.ids, best.ids + count, int64_t(0));
            find_maxima(row, width, maxima);
            const float peak = *std::max_element(maxima.begin(), maxima.end());
            find_best(row, width, as_log_probs ? shift_of(row, width, peak) : Shift{0.0f, 0.0f}, maxima, best);
        }
    }
}
