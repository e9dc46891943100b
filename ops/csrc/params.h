// What crosses the border between the torch side (ops.cpp) and the kernels: plain structs, no torch headers.
//
// `T` is the type of the computation, float or double. Sequence tensors keep their own element type and strides and are converted
// a tile at a time; the small tensors (A, D, weights) arrive contiguous and already in `T`.
#pragma once
#include <stdint.h>

namespace vision_mamba {

enum class Scalar : int { f32, f64, bf16, f16 };

// A (batch, row, time) tensor of any strides; `rows` are channels, or states of one group of B or C. `data` null: not given.
struct Sequence {
  void* data;
  Scalar type;
  int64_t batch_stride, row_stride, time_stride;
};

// B or C. Varying: `sequence` with `group_stride` and `groups`; constant: `constant`, (channels, states) contiguous.
struct Weights {
  Sequence sequence;
  int64_t group_stride, groups;
  const void* constant;
};

// How a scan is cut into tasks. It depends on the sizes and on the vector width only, never on the number of threads, so that
// sums over channels, batch and time are always formed in the same order.
struct Partition {
  int64_t groups;           // channels of one group share B and C; a block never crosses a group
  int64_t group_channels;   // channels a group
  int64_t blocks_per_task;  // blocks of `lanes` channels worked on together
  int64_t tasks_per_group;
  int64_t chunks;           // chunks of `chunk_steps` steps
  int64_t padded_states;
  int64_t partial_size;     // elements of T that one task needs for its share of the gradient of a varying B or C
};

struct Scan {
  int64_t batch, channels, length, states;
  Partition cut;
  Sequence u, delta, z;
  Weights b, c;
  const void *a, *d, *delta_bias;  // (D, N), (D) or null, (D) or null
  bool softplus;
};

struct ScanForward {
  Scan scan;
  Sequence out;
  void* last_state;   // (B, D, N)
  void* checkpoints;  // (B, chunks, N, D) states at the start of every chunk, or null
};

struct ScanBackward {
  Scan scan;
  Sequence grad_out;            // data null: zero
  const void* grad_last_state;  // (B, D, N) or null
  const void* checkpoints;
  Sequence grad_u, grad_delta, grad_z;
  // Sums over the batch are left to a second pass: (B, D, N) and (B, D).
  void *grad_a, *grad_b_constant, *grad_c_constant, *grad_d, *grad_delta_bias;
  void *partial_b, *partial_c;  // (tasks, partial_size) for varying B and C
};

// Several scans of one set of tokens, each in an order of its own. In `scan`, `u` holds the tokens, channels next to each other; `a`, `d` and
// `delta_bias` have a leading dimension of directions; `delta`, `z`, `b` and `c` are not used.
struct Cross {
  Scan scan;
  int64_t directions, rank;
  int64_t u_direction;       // distance between the directions' tokens; 0 where they share them
  Sequence weights;          // (batch, rank + 2 states, token): what each token says of its step size, B and C; `row_stride` is 1
  int64_t weights_direction;
  const void* dt_weight;     // (directions, rank, channels)
  const int32_t* orders;     // (directions, length): the token that a step comes to
};

struct CrossForward {
  Cross cross;
  void* out;          // (batch, token, channels), the sum over the directions
  void* checkpoints;  // (batch, directions, chunks, states, channels) states at the start of every chunk, or null
};

struct CrossBackward {
  Cross cross;
  int64_t first_direction, last_direction;  // worked on in this pass
  Sequence grad_out;
  const void* checkpoints;
  void* grad_u;              // (batch, token, channels), or with a dimension of directions behind the batch where they have their own tokens
  // Sums over the batch are left to a second pass: (batch, directions, ...).
  void *grad_a, *grad_d, *grad_delta_bias, *grad_dt_weight;
  void *partial_b, *partial_c, *partial_dt;  // (tasks, directions of this pass, ...)
  void* grad_weights;        // (batch, token, directions, rank + 2 states)
};

struct Conv {
  int64_t batch, channels, length, width;
  Sequence x;
  const void *weight, *bias;  // (D, W), (D) or null
  bool silu;
};

struct ConvForward {
  Conv conv;
  Sequence out;
};

struct ConvBackward {
  Conv conv;
  Sequence grad_out, grad_x;
  void *grad_weight, *grad_bias;  // (B, D, W), (B, D): summed over the batch in a second pass
};

// The kernels of one instruction set and one computing type.
struct Kernels {
  int64_t lanes;        // channels worked on at once
  int64_t chunk_steps;  // steps between two stored states
  Partition (*partition)(int64_t batch, int64_t channels, int64_t length, int64_t states, int64_t groups, int64_t least_tasks);
  // Tasks first..last of batch * groups * tasks_per_group.
  void (*scan_forward)(const ScanForward&, int64_t first, int64_t last);
  void (*scan_backward)(const ScanBackward&, int64_t first, int64_t last);
  // Adds the tasks' shares of the gradient of B or C; (batch, group of B, chunk) items first..last.
  void (*merge_weights)(const Scan&, const Weights& gradient, const void* partial, int64_t first, int64_t last);
  // Tasks first..last of batch * tasks_per_group.
  void (*cross_forward)(const CrossForward&, int64_t first, int64_t last);
  void (*cross_backward)(const CrossBackward&, int64_t first, int64_t last);
  // Adds the tasks' shares of the gradient of the tokens' weights; (batch, direction of the pass, chunk) items first..last.
  void (*merge_cross)(const CrossBackward&, int64_t first, int64_t last);
  // (batch, block of `lanes` channels) items first..last.
  void (*conv_forward)(const ConvForward&, int64_t first, int64_t last);
  void (*conv_backward)(const ConvBackward&, int64_t first, int64_t last);
};

struct InstructionSet {
  const char* name;
  Kernels f32, f64;
};

// The best instruction set of this processor, or the one named by VISION_MAMBA_OPS_ISA if the processor has it.
const InstructionSet& instruction_set();

}  // namespace vision_mamba
