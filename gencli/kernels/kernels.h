/* Products with packed weights, packing them and back, and steps of decoders. What a variant offers, and what all share.

   Weights lie in rows, packed as in a GGUF file; x and y are float32. Activations are rounded in blocks of 32 for packed
   types: to 8 bits (as llama.cpp does), and to 16 for Q8_0, whose weights lose less than 8 bits of activations would, where
   that takes no longer. They stay float32 for F32, F16 and BF16. */
#ifndef GENCLI_KERNELS_H
#define GENCLI_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INTERFACE 11  /* what the Python side asks for: changes with the functions and structures below */
#define CHUNK 128    /* positions whose activations are prepared together */
#define EXPERTS 1024 /* the most of a layer */
#define TAPS 64      /* the most of a convolution */

typedef struct {
    const uint8_t *data;   /* the first row */
    int64_t rows, columns;
    int64_t stride;        /* bytes from a row to the next */
    const int32_t *order;  /* row i is output order[i]; NULL: i */
    const float *bias;     /* of the outputs; NULL: none */
    int32_t type;          /* a number of GGUF */
    int32_t sideways;      /* rows are inputs and columns outputs (F32, F16, BF16 alone; without order) */
} Weights;

/* One position's activations: codes of 8 bits, a scale for each 32, the same twice for each 16, and sums of codes *
   scale of each 16 and of each 32. fine: codes of 16 bits, with a scale for each 32, a power of two. */
typedef struct {
    const float *x;
    int8_t *codes;
    int16_t *fine;
    float *scales, *scales16, *sums16, *sums32, *fine_scales;
} Activations;

/* Groups of `size` numbers are each divided by their root mean square or, with `centred`, by their deviation from the
   mean; then times weight, plus bias. weight NULL: no norm. */
typedef struct {
    const float *weight, *bias;
    int32_t size, centred;
    float eps;
} Norm;

/* CLAMPED_SILU: with the up projection, from a gate of at most `limit` and an up projection of at most ± `limit`,
   gate · sigmoid(alpha · gate) · (up + 1) */
enum { SILU = 0, GELU_TANH = 1, CLAMPED_SILU = 2 };

/* What a layer does with its own numbers for each position, `Inputs` of the model: behind the feed-forward network
   x += after(projection(activation(gate(x)) * own)). */
typedef struct {
    const Weights *gate, *projection;
    Norm after;
} LayerInput;

/* Gated DeltaNet in place of attention: `qkv[0]` is queries and keys of `key_heads`, then values of `heads`, which go
   through a convolution of `taps` positions, `convolution` (taps, width), and silu. A head of keys serves several of
   values, which lie together or, `in_turns`, one for each head of keys and then the next ones. A head has a state
   S (key, value), of which a position keeps exp(decay * softplus(a + dt_bias)) and which it then changes at the rate
   sigmoid(b); what it finds is normed, times silu(z). The layer's q_norm and k_norm are of a head of queries and keys. */
typedef struct {
    const Weights *z, *b, *a;
    const float *convolution, *decay, *dt_bias;
    Norm norm;
    int32_t heads, key_heads, key, value, taps, in_turns;
} Delta;

/* A layer of a decoder: x += after_attention(o(attention(before_attention(x)))), then the same of the feed-forward
   network. Matrices may be fused: `qkv` has 3 or 1, `gate_up` 2 or 1. Two of `qkv`: values are keys before their norm.
   reuses: `qkv` has queries alone, and keys and values are those that an earlier layer has written.

   A mixture of experts has, in place of that network, `router`, whose outputs say which `chosen` of the `count` experts
   compute for a row, and gate, up and down of each, all of one shape and one type. Their shares are the softmax of these
   outputs, of all experts or with `normalised` of the chosen ones, times `expert_scales`. The router may have a norm of its
   own.

   beside: a mixture and its norms, with the rest unused, whose result is added to that of the network, before after_mlp
   and behind a norm of each: beside->after_mlp, and after_network. share: the network's result counts as far as the sigmoid
   of this matrix's one output.

   head_gates: `qkv[0]` has behind each head's queries a gate, whose sigmoid is a factor of what the head finds. */
typedef struct Layer {
    const Weights *qkv[3], *o, *gate_up[2], *down;
    const Weights *router, *const *experts;
    int32_t count, chosen, normalised;
    Norm before_attention, after_attention, before_mlp, after_mlp, q_norm, k_norm;
    int32_t heads, kv_heads, head_size, rotated;  /* rotated: numbers of a head that are rotated */
    int32_t hidden, inner, window;                /* window: 0 for all positions */
    int32_t activation, gated;
    float scale, softcap;                         /* softcap: 0 for none */
    float alpha, limit;                           /* of the activation */
    const float *sinks;                           /* of each head, a score without a value; NULL: none */
    Norm v_norm, before_router, after_network;
    const float *expert_scales, *output_scale;    /* NULL: none; output_scale: one number, of all that comes out */
    const LayerInput *input;                      /* NULL: none */
    const struct Layer *beside;                   /* NULL: none */
    int32_t reuses, head_gates;
    const Weights *share;                         /* NULL: none */
    const Delta *delta;                           /* NULL: attention */
} Layer;

/* What layers have of their own for a position: (norm(projection(x) * by) + embedding[id] * scale) / sqrt(2), `size`
   numbers for each layer. */
typedef struct {
    const Weights *embedding, *projection;
    Norm norm;
    int32_t size;
    float scale, by;
} Inputs;

/* A decoder: x = embedding[id] * scale + positions[position], the layers, and head(norm(x)). Without an embedding x is
   given, and without a head the last layer's is what comes out. */
typedef struct {
    const Layer *const *layers;
    int64_t count;
    const Weights *embedding, *positions, *head;
    Norm norm;
    float scale;
    const Inputs *inputs;  /* NULL: none */
} Model;

/* A step: T new positions of each of some texts. keys[layer] and values[layer] are
   (texts, K, capacity, D), the same as an earlier layer's if a layer reuses them; lengths[b] positions of text b are
   filled, and T more in the end. Of a layer with gated DeltaNet keys are the convolution's last inputs,
   (taps - 1, width), and values the states (heads, key, value), with window_step and state_step numbers from a text's to
   the next one's. cos and sin, of each layer: (S, rotated), of all positions from 0 on; no table: no RoPE. last: logits
   of a text's last position alone. */
typedef struct {
    int64_t texts, new, capacity, last, window_step, state_step;
    const int64_t *ids;   /* (texts, T) */
    int64_t *lengths;     /* (texts,) */
    float *const *keys, *const *values;
    const float *const *cos, *const *sin;
    float *x, *logits;    /* (texts, T, hidden), and (texts, T or 1, outputs of the head) */
    float *memory;        /* the threads' common one, as step.c wants it */
} Place;

/* Rows of one head with a state (keys, values): q and k, v, which becomes what is found, with `step` numbers from a row
   to the next; how much each keeps and learns; and memory for q · k. */
typedef struct {
    float *state;
    const float *q, *k;
    float *v;
    const float *decay, *rate;
    float *both;
    int64_t step, rows;
    int32_t keys, values;
} Memory;

typedef struct {
    const char *name;
    int (*runs_here)(void);
    void (*prepare)(Activations *to, int64_t columns);
    /* y[position * y_stride + output] of rows first to last - 1; sideways, of columns first to last - 1 */
    void (*product)(const Weights *w, const Activations *x, int positions, float *y, int64_t y_stride,
                    int64_t first, int64_t last);
    void (*dequantise)(int type, const uint8_t *row, int64_t columns, float *to);
    /* returns 1 for numbers that the type cannot hold */
    int (*pack)(int type, const float *x, int64_t columns, uint8_t *to);
    void (*norm)(const Norm *norm, float *y, const float *x, int64_t count);
    /* y (D,) of one head: softmax(q · keys * scale) · values, of `count` positions; scores: memory for as many numbers */
    void (*attend)(const Layer *layer, int64_t head, const float *q, const float *keys, const float *values,
                   int64_t count, float *scores, float *y);
    /* gate = activation(gate) * up, as a layer has it; up NULL: activation(gate) */
    void (*activate)(const Layer *layer, float *gate, const float *up, int64_t count);
    /* of gated DeltaNet, and the gates of heads: see delta.h */
    void (*convolve)(const float *const *inputs, const float *weights, int64_t width, int taps, int64_t count, float *y);
    void (*learn)(const Memory *memory);
    void (*open_gate)(float *y, float *x, int64_t count);
} Variant;

/* kernels.c */
extern const Variant *gencli_chosen;
void gencli_run(void (*work)(void *), void *data, unsigned threads);  /* on threads of the pool; 0: its own number */
int gencli_team(void);  /* how many threads run what is running */
void *gencli_scratch(size_t size);
int64_t gencli_piece(const Weights *w);  /* outputs that a thread computes at a time */
int gencli_is_packed(const Weights *w);
int64_t gencli_codes_size(int64_t inputs);  /* bytes of a position's codes and scales */
void gencli_lay_out(Activations *to, const float *x, int64_t inputs, uint8_t *memory);  /* no memory: x alone */
void gencli_prepare(Activations *to, int64_t inputs);  /* fills in codes and scales */

extern const Variant gencli_plain, gencli_avx2, gencli_avx512, gencli_neon, gencli_dotprod;

#endif
