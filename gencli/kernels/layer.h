/* What a decoder's layer computes beside its products: norms, attention, activations. Part of variant.c. */

static void norm(const Norm *norm, float *y, const float *x, int64_t count) {
    const int size = norm->size;
    for (int64_t at = 0; at < count; at += size, x += size, y += size) {
        float mean = 0, square = 0;
        floats sum = zero(), squares = zero();
        int i = 0;
        for (; i + 8 <= size; i += 8) sum = plus(sum, load_f32(x + i));
        mean = total(sum);
        for (; i < size; i++) mean += x[i];
        mean = norm->centred ? mean / (float)size : 0;
        for (i = 0; i + 8 <= size; i += 8) {
            floats from = plus(load_f32(x + i), same(-mean));
            squares = plus_times(squares, from, from);
        }
        square = total(squares);
        for (; i < size; i++) square += (x[i] - mean) * (x[i] - mean);
        float by = 1 / sqrtf(square / (float)size + norm->eps);
        for (i = 0; i < size; i++) y[i] = (x[i] - mean) * by * norm->weight[i] + (norm->bias ? norm->bias[i] : 0);
    }
}

/* e^x within 3e-7 of it: 2^n times a polynomial; below -87 it is 0, and NaN stays */
INLINE floats exponential(floats x) {
    floats t = lesser(same(127), greater(same(-126), times(x, same(1.44269504f)))), whole = rounded(t);
    floats sum = same(0.00133335581f), power = power_of_two(whole);
    t = plus(t, times(whole, same(-1)));
    const float factors[5] = {0.00961812911f, 0.0555041087f, 0.240226507f, 0.693147181f, 1};
    UNROLL(8)
    for (int i = 0; i < 5; i++) sum = plus_times(same(factors[i]), sum, t);
    return if_less(x, same(-87), zero(), times(power, sum));
}

typedef floats Function(floats x);

/* Each x becomes function(x). */
INLINE void map(Function *function, float *x, int64_t count) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) store(x + i, function(load_f32(x + i)));
    if (i == count) return;
    float rest[8] = {0};
    memcpy(rest, x + i, (size_t)(count - i) * sizeof *x);
    store(rest, function(load_f32(rest)));
    memcpy(x + i, rest, (size_t)(count - i) * sizeof *x);
}

/* tanh(x / 2) */
INLINE floats tanh_of_half(floats x) { return plus(same(1), over(same(-2), plus(same(1), exponential(x)))); }

static void scale_all(float *x, int64_t count, float by) {
    for (int64_t i = 0; i < count; i++) x[i] *= by;
}

/* y (`vectors` of 8) = the sum of weights[t] * values[t] */
INLINE void weigh(const float *weights, const float *values, int64_t count, int size, int vectors, float *y) {
    floats sums[4] = {zero(), zero(), zero(), zero()};
    for (int64_t t = 0; t < count; t++, values += size) {
        UNROLL(4)
        for (int v = 0; v < vectors; v++) sums[v] = plus_times(sums[v], load_f32(values + 8 * v), same(weights[t]));
    }
    UNROLL(4)
    for (int v = 0; v < vectors; v++) store(y + 8 * v, sums[v]);
}

static void attend(const Layer *layer, int64_t head, const float *q, const float *keys, const float *values, int64_t count,
                   float *scores, float *y) {
    const int size = layer->head_size;
    float top = -3.4e38f, sum = 0;
    int i = 0;
    for (int64_t t = 0; t < count; t++) {
        floats a = zero(), b = zero();
        const float *key = keys + t * size;
        for (i = 0; i + 16 <= size; i += 16) {
            a = plus_times(a, load_f32(q + i), load_f32(key + i));
            b = plus_times(b, load_f32(q + i + 8), load_f32(key + i + 8));
        }
        float score = total(plus(a, b));
        for (; i < size; i++) score += q[i] * key[i];
        scores[t] = score * layer->scale;
    }
    if (layer->softcap != 0) {
        scale_all(scores, count, 2 / layer->softcap);
        map(tanh_of_half, scores, count);
        scale_all(scores, count, layer->softcap);
    }
    if (layer->sinks) top = layer->sinks[head];
    for (int64_t t = 0; t < count; t++)
        if (!(scores[t] <= top)) top = scores[t];
    for (int64_t t = 0; t < count; t++) scores[t] -= top;
    map(exponential, scores, count);
    for (int64_t t = 0; t < count; t++) sum += scores[t];
    if (layer->sinks) sum += expf(layer->sinks[head] - top);
    scale_all(scores, count, 1 / sum);
    for (i = 0; i + 32 <= size; i += 32) weigh(scores, values + i, count, size, 4, y + i);
    for (; i + 8 <= size; i += 8) weigh(scores, values + i, count, size, 1, y + i);
    for (; i < size; i++) {
        y[i] = 0;
        for (int64_t t = 0; t < count; t++) y[i] += scores[t] * values[t * size + i];
    }
}

INLINE floats silu(floats x) { return over(x, plus(same(1), exponential(times(x, same(-1))))); }

/* 0.5 x (1 + tanh(u)) = x / (1 + e^-2u) */
INLINE floats gelu(floats x) {
    floats u = plus_times(x, times(times(x, x), x), same(0.044715f));
    return over(x, plus(same(1), exponential(times(u, same(-1.5957691216f)))));
}

INLINE floats clamped_silu(floats gate, floats up, floats alpha, floats limit) {
    gate = lesser(limit, gate);
    up = plus(same(1), lesser(limit, greater(times(limit, same(-1)), up)));
    return times(up, over(gate, plus(same(1), exponential(times(times(gate, alpha), same(-1))))));
}

static void clamped(const Layer *layer, float *gate, const float *up, int64_t count) {
    floats alpha = same(layer->alpha), limit = same(layer->limit);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) store(gate + i, clamped_silu(load_f32(gate + i), load_f32(up + i), alpha, limit));
    if (i == count) return;
    float rest[8] = {0}, others[8] = {0};
    memcpy(rest, gate + i, (size_t)(count - i) * sizeof *gate);
    memcpy(others, up + i, (size_t)(count - i) * sizeof *up);
    store(rest, clamped_silu(load_f32(rest), load_f32(others), alpha, limit));
    memcpy(gate + i, rest, (size_t)(count - i) * sizeof *gate);
}

static void activate(const Layer *layer, float *gate, const float *up, int64_t count) {
    if (layer->activation == CLAMPED_SILU && up) {
        clamped(layer, gate, up, count);
        return;
    }
    if (layer->activation == SILU) map(silu, gate, count);
    else map(gelu, gate, count);
    for (int64_t i = 0; up && i < count; i++) gate[i] *= up[i];
}
