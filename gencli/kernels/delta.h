/* What gated DeltaNet computes beside its products and norms. Part of variant.c. */

/* y = silu(the sum over all taps of inputs[tap] * weights[tap]), of `count` channels; `width` numbers from a tap's weights
   to the next one's */
static void convolve(const float *const *inputs, const float *weights, int64_t width, int taps, int64_t count, float *y) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        floats sum = zero();
        for (int tap = 0; tap < taps; tap++)
            sum = plus_times(sum, load_f32(inputs[tap] + i), load_f32(weights + tap * width + i));
        store(y + i, sum);
    }
    for (; i < count; i++) {
        y[i] = 0;
        for (int tap = 0; tap < taps; tap++) y[i] += inputs[tap][i] * weights[tap * width + i];
    }
    map(silu, y, count);
}

/* The recurrence of `vectors` times 8 columns of the state: they stay in the nearest cache for all rows. */
INLINE void learn_columns(const Memory *m, int64_t column, int vectors) {
    for (int64_t r = 0; r < m->rows; r++) {
        const float *q = m->q + r * m->step, *k = m->k + r * m->step;
        float *at = m->state + column, *v = m->v + r * m->step + column;
        floats decay = same(m->decay[r]), rate = same(m->rate[r]), both = same(m->both[r]);
        floats known[4] = {zero(), zero(), zero(), zero()}, asked[4] = {zero(), zero(), zero(), zero()};
        for (int i = 0; i < m->keys; i++, at += m->values) {
            floats key = same(k[i]), query = same(q[i]);
            UNROLL(4)
            for (int j = 0; j < vectors; j++) {
                floats state = load_f32(at + 8 * j);
                known[j] = plus_times(known[j], state, key);
                asked[j] = plus_times(asked[j], state, query);
            }
        }
        UNROLL(4)
        for (int j = 0; j < vectors; j++) {
            floats missing = plus_times(load_f32(v + 8 * j), times(known[j], decay), same(-1));
            known[j] = times(missing, rate);  /* the change */
            store(v + 8 * j, plus_times(times(asked[j], decay), known[j], both));
        }
        at = m->state + column;
        for (int i = 0; i < m->keys; i++, at += m->values) {
            floats key = same(k[i]);
            UNROLL(4)
            for (int j = 0; j < vectors; j++)
                store(at + 8 * j, plus_times(times(load_f32(at + 8 * j), decay), known[j], key));
        }
    }
}

/* The same of one column. */
static void learn_column(const Memory *m, int64_t column) {
    for (int64_t r = 0; r < m->rows; r++) {
        const float *q = m->q + r * m->step, *k = m->k + r * m->step;
        float *at = m->state + column, *v = m->v + r * m->step + column, known = 0, asked = 0;
        for (int i = 0; i < m->keys; i++) {
            known += at[i * m->values] * k[i];
            asked += at[i * m->values] * q[i];
        }
        float change = (*v - known * m->decay[r]) * m->rate[r];
        *v = asked * m->decay[r] + change * m->both[r];
        for (int i = 0; i < m->keys; i++) at[i * m->values] = at[i * m->values] * m->decay[r] + change * k[i];
    }
}

/* Reads rows of one head in order: its state is the next one's then, and v what the queries find. */
static void learn(const Memory *m) {
    int64_t i = 0;
    for (int64_t r = 0; r < m->rows; r++) {
        floats sum = zero();
        const float *q = m->q + r * m->step, *k = m->k + r * m->step;
        for (i = 0; i + 8 <= m->keys; i += 8) sum = plus_times(sum, load_f32(q + i), load_f32(k + i));
        m->both[r] = total(sum);
        for (; i < m->keys; i++) m->both[r] += q[i] * k[i];
    }
    for (i = 0; i + 32 <= m->values; i += 32) learn_columns(m, i, 4);
    for (; i + 8 <= m->values; i += 8) learn_columns(m, i, 1);
    for (; i < m->values; i++) learn_column(m, i);
}

INLINE floats sigmoid(floats x) { return over(same(1), plus(same(1), exponential(times(x, same(-1))))); }

/* y *= sigmoid(x), and x is its sigmoid then */
static void open_gate(float *y, float *x, int64_t count) {
    map(sigmoid, x, count);
    for (int64_t i = 0; i < count; i++) y[i] *= x[i];
}
