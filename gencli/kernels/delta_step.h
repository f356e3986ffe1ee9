/* Gated DeltaNet as a layer's attention, and gates of what attention and a network give. Part of step.c.

   A text's rows are read in order, and a state is one thread's, so that any number of threads gives the same bits. */

/* The rows of a text that are read now: first to first + count - 1 of the step's. */
typedef struct { int64_t text, first, count; } Reading;

static int64_t readings(const Step *s) { return text_of(s, s->rows - 1) - text_of(s, 0) + 1; }

static Reading reading(const Step *s, int64_t number) {
    int64_t text = text_of(s, 0) + number, first = text * s->at->new - s->done, last = first + s->at->new;
    first = first > 0 ? first : 0;
    return (Reading){text, first, (last < s->rows ? last : s->rows) - first};
}

static int64_t width_of(const Delta *d) { return 2 * (int64_t)d->key_heads * d->key + (int64_t)d->heads * d->value; }

/* The convolution of channels first to first + count - 1 of a text; the window then has its last inputs. */
static void convolve(const Delta *d, Reading at, const float *x, float *y, float *window, int64_t first, int64_t count) {
    int64_t width = width_of(d), kept = d->taps - 1, start = at.first * width + first;
    for (int64_t r = 0; r < at.count; r++) {
        const float *inputs[TAPS];
        for (int64_t tap = 0; tap < d->taps; tap++) {
            int64_t from = r + tap - kept;
            inputs[tap] = from < 0 ? window + (kept + from) * width + first : x + start + from * width;
        }
        gencli_chosen->convolve(inputs, d->convolution + first, width, d->taps, count, y + start + r * width);
    }
    for (int64_t i = 0; i < kept; i++) {
        int64_t from = at.count + i - kept;
        const float *last = from < 0 ? window + (i + at.count) * width + first : x + start + from * width;
        memcpy(window + i * width + first, last, (size_t)count * sizeof *x);
    }
}

/* This thread's share of the convolution, y (rows, width): a head of keys of a text, with as large a part of the values. */
static void convolve_all(Thread *t, const Layer *l, int64_t number, const float *x, float *y) {
    const Step *s = t->step;
    const Delta *d = l->delta;
    int64_t keys = (int64_t)d->key_heads * d->key, part = (int64_t)(d->heads / d->key_heads) * d->value;
    for (int64_t i; (i = next(t)) < readings(s) * d->key_heads;) {
        Reading at = reading(s, i / d->key_heads);
        int64_t head = i % d->key_heads, query = head * d->key, key = keys + query;
        float *window = s->at->keys[number] + at.text * s->at->window_step;
        convolve(d, at, x, y, window, query, d->key);
        convolve(d, at, x, y, window, key, d->key);
        convolve(d, at, x, y, window, 2 * keys + head * part, part);
        for (int64_t r = at.first; r < at.first + at.count; r++) {
            float *row = y + r * width_of(d);
            normed(&l->q_norm, row + query, row + query, d->key);
            normed(&l->k_norm, row + key, row + key, d->key);
        }
    }
    meet(t);
}

static float soft_plus(float x) { return x > 20 ? x : log1pf(expf(x)); }

/* This thread's share of the heads: what they find for y (rows, width), normed, times the activation of z (rows, values),
   where it lies then. b and a (rows, heads): what says how fast they learn and forget. */
static void learn_all(Thread *t, const Layer *l, int64_t number, float *y, float *z, const float *b, const float *a) {
    const Step *s = t->step;
    const Delta *d = l->delta;
    int64_t width = width_of(d), group = d->heads / d->key_heads, size = (int64_t)d->key * d->value;
    float decay[CHUNK], rate[CHUNK], both[CHUNK];
    for (int64_t i; (i = next(t)) < readings(s) * d->heads;) {
        Reading at = reading(s, i / d->heads);
        int64_t head = i % d->heads, key = d->in_turns ? head % d->key_heads : head / group;
        float *q = y + at.first * width + key * d->key, *v = y + at.first * width;
        v += 2 * (int64_t)d->key_heads * d->key + head * d->value;
        for (int64_t r = 0; r < at.count; r++) {
            int64_t from = (at.first + r) * d->heads + head;
            decay[r] = expf(d->decay[head] * soft_plus(a[from] + d->dt_bias[head]));
            rate[r] = 1 / (1 + expf(-b[from]));
        }
        float *state = s->at->values[number] + at.text * s->at->state_step + head * size;
        Memory memory = {state, q, q + (int64_t)d->key_heads * d->key, v, decay, rate, both, width, at.count, d->key,
                         d->value};
        gencli_chosen->learn(&memory);
        for (int64_t r = 0; r < at.count; r++) {
            float *gate = z + ((at.first + r) * d->heads + head) * d->value;
            normed(&d->norm, v + r * width, v + r * width, d->value);
            gencli_chosen->activate(l, gate, v + r * width, d->value);
        }
    }
    meet(t);
}

/* out (rows, hidden) = gated DeltaNet of h. Memory for each row: twice the convolution's width, values and two numbers
   of each head. */
static void delta_net(Thread *t, const Layer *l, int64_t number, Rows h, float *memory, float *out) {
    const Delta *d = l->delta;
    int64_t n = t->step->rows, width = width_of(d), values = (int64_t)d->heads * d->value;
    float *x = memory, *y = x + n * width, *z = y + n * width, *b = z + n * values, *a = b + n * d->heads;
    products(t, (const Weights *[]){l->qkv[0], d->z, d->b, d->a}, (float *[]){x, z, b, a}, 4, h, n);
    convolve_all(t, l, number, x, y);
    learn_all(t, l, number, y, z, b, a);
    products(t, &l->o, &out, 1, (Rows){z, values}, n);
}

/* Each head's queries of a row lie before its gate: then all queries before all gates. memory: for as many gates. */
static void part_gates(const Layer *l, float *row, float *memory) {
    size_t size = (size_t)l->head_size;
    for (int64_t head = 0; head < l->heads; head++) {
        memcpy(memory + head * l->head_size, row + (2 * head + 1) * l->head_size, size * sizeof *row);
        memmove(row + head * l->head_size, row + 2 * head * l->head_size, size * sizeof *row);
    }
    memcpy(row + l->heads * l->head_size, memory, (size_t)l->heads * size * sizeof *row);
}

/* out (rows, hidden) counts as far as the sigmoid of `share` of h says. Memory for each row: one number. */
static void share_out(Thread *t, const Layer *l, Rows h, float *memory, float *out) {
    int64_t n = t->step->rows;
    products(t, &l->share, &memory, 1, h, n);
    for (int64_t r; (r = next(t)) < n;) {
        float by = 1 / (1 + expf(-memory[r]));
        for (int64_t i = 0; i < l->hidden; i++) out[r * l->hidden + i] *= by;
    }
    meet(t);
}
