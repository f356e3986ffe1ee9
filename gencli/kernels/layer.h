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
INLINE float exponential(float x) {
    const float round = 12582912;  /* 1.5 * 2^23: what is added to it is rounded to a whole number */
    float t = x * 1.44269504f, whole, power, result;
    t = t < -126 ? -126 : t > 127 ? 127 : t;
    float shifted = t + round;
    int32_t bits, number;
    memcpy(&bits, &shifted, 4);
    whole = shifted - round;
    t -= whole;
    power = 1 + t * (0.693147181f + t * (0.240226507f + t * (0.0555041087f + t * (0.00961812911f + t * 0.00133335581f))));
    number = (int32_t)((uint32_t)(bits - 0x4b400000 + 127) << 23);
    memcpy(&result, &number, 4);
    return x < -87 ? 0 : power * result;
}

static void attend(const Layer *layer, const float *q, const float *keys, const float *values, int64_t count,
                   float *scores, float *y) {
    const int size = layer->head_size;
    float top = -3.4e38f, sum = 0;
    for (int64_t t = 0; t < count; t++) {
        floats a = zero(), b = zero();
        int i = 0;
        const float *key = keys + t * size;
        for (; i + 16 <= size; i += 16) {
            a = plus_times(a, load_f32(q + i), load_f32(key + i));
            b = plus_times(b, load_f32(q + i + 8), load_f32(key + i + 8));
        }
        float score = total(plus(a, b));
        for (; i < size; i++) score += q[i] * key[i];
        score *= layer->scale;
        if (layer->softcap != 0) {
            float e = exponential(2 * (score / layer->softcap));
            score = layer->softcap * (1 - 2 / (e + 1));
        }
        scores[t] = score;
        if (!(score <= top)) top = score;
    }
    for (int64_t t = 0; t < count; t++) sum += scores[t] = exponential(scores[t] - top);
    for (int i = 0; i < size; i++) y[i] = 0;
    for (int64_t t = 0; t < count; t++) {
        const float weight = scores[t] / sum, *value = values + t * size;
        int i = 0;
        for (; i + 8 <= size; i += 8) store(y + i, plus_times(load_f32(y + i), load_f32(value + i), same(weight)));
        for (; i < size; i++) y[i] += weight * value[i];
    }
}

static void activate(int kind, float *gate, const float *up, int64_t count) {
    if (kind == SILU)
        for (int64_t i = 0; i < count; i++) gate[i] = gate[i] / (1 + exponential(-gate[i]));
    else  /* 0.5 x (1 + tanh(u)) = x / (1 + e^-2u) */
        for (int64_t i = 0; i < count; i++) {
            float x = gate[i], u = 0.7978845608f * (x + 0.044715f * x * x * x);
            gate[i] = x / (1 + exponential(-2 * u));
        }
    for (int64_t i = 0; up && i < count; i++) gate[i] *= up[i];
}
