// The operators' CUDA half: allocates, fills in the kernels' jobs, launches, registers. Schemas and autograd are in ../library.cpp, whose library must be
// loaded first. Compiled by nvcc, or with VM_EMULATED by any C++ compiler for the tests (emulation.h).
#include <ATen/ATen.h>
#include <torch/library.h>
#include <torch/version.h>

#include <limits>
#include <numeric>
#include <tuple>

#include "../checks.h"
#include "conv.h"
#ifndef VM_EMULATED
#include "graph.h"
#endif
#include "one_backward.h"
#include "one_forward.h"
#include "scan_backward.h"
#include "scan_forward.h"
#include "warp_backward.h"
#include "warp_forward.h"

namespace vision_mamba {

using Activation = std::optional<c10::string_view>;
using ScanGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using CrossGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kMostStates = 128;

static Scalar scalar(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kBFloat16: return Scalar::bf16;
    case at::kHalf: return Scalar::f16;
    default: return Scalar::f32;
  }
}
static Sequence sequence(const Tensor& t, int64_t row_dim = 1) {
  return {t.data_ptr(), scalar(t), t.stride(0), t.stride(row_dim), t.stride(row_dim + 1)};
}
static Sequence sequence(const OptionalTensor& t) { return given(t) ? sequence(*t) : Sequence{nullptr, Scalar::f32, 0, 0, 0}; }
static Tensor small(const Tensor& t) { return t.to(at::kFloat).contiguous(); }
static Tensor small(const OptionalTensor& t) { return given(t) ? small(*t) : Tensor(); }
static float* data(const Tensor& t) { return t.defined() ? t.data_ptr<float>() : nullptr; }
static Tensor numbers(const Tensor& like, at::IntArrayRef sizes) { return at::empty(sizes, like.options().dtype(at::kFloat)); }
static int64_t blocks_of(int64_t items) { return (items + 127) / 128; }

static void check_supported(const char* op, const Tensor& first, int64_t states) {
  const Check check{op, first, ""};
  if (first.scalar_type() == at::kDouble) check.fail("float64 is not supported on ", first.device(), ": use float32, or float64 on the CPU");
  if (states > kMostStates) check.fail("N is ", states, ", expected at most ", kMostStates, " on ", first.device(), ": use the CPU");
}

// ---- which kernel, how many blocks -------------------------------------------------------------------------------------------

// Calls `body` with the form that fits.
template <bool cross, class Body>
static void with_form(const Job& j, const Body& body) {
  const bool varying = cross || (j.b.constant == nullptr && j.c.constant == nullptr);
  if (j.states == 1 && varying) return body(vision_mamba::Form<1, 1, cross, true>());
  if (j.states > 16) return body(vision_mamba::Form<4, 32, cross, cross>());
  if (varying) return body(vision_mamba::Form<4, 4, cross, true>());
  if constexpr (!cross) return body(vision_mamba::Form<4, 4, false, false>());
}

// Cuts channels into blocks, and time into segments where the blocks alone would leave multiprocessors idle: as many as make the longest row of chunks that
// one place on a multiprocessor walks shortest, counting in that the pass which finds the segments' states costs about half of what it prepares.
template <class F>
static void cut(Job& j) {
  j.group_channels = j.channels / j.groups;
  j.group_blocks = (j.group_channels + F::channels - 1) / F::channels;
  j.chunks = (j.length + kChunk - 1) / kChunk;
  const int64_t blocks = j.groups * j.group_blocks * j.batch * j.launch_directions, times = j.directions / j.launch_directions;
  const int64_t places = multiprocessors() * (F::threads == 64 ? 12 : 3);
  j.segments = 1, j.segment_chunks = j.chunks;
  if (blocks == 0) return;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t wanted = 1; wanted <= j.chunks && (wanted - 1) * blocks < places; wanted++) {
    const int64_t chunks = (j.chunks + wanted - 1) / wanted, segments = (j.chunks + chunks - 1) / chunks;
    auto rows = [&](int64_t n) { return (n * segments * blocks + places - 1) / places; };
    const int64_t cost = chunks * (2 * times * rows(1) + (segments > 1 ? rows(times) : 0));
    if (cost < least) least = cost, j.segments = segments, j.segment_chunks = chunks;
  }
}
static int64_t launch_blocks(const Job& j) { return j.groups * j.group_blocks * j.segments * j.batch * j.launch_directions; }

static void add_up(const Job& j, bool reverse, const float* initial) {
  const CarryJob c{j.batch * j.directions, j.segments, j.states, j.channels, j.directions, j.carry, j.sums, j.a, initial, reverse};
  launch(carry_kernel, blocks_of(c.slots * c.states * c.channels), 128, 0, c);
}
static Tensor make_carry(Job& j, const Tensor& like) {
  if (j.segments == 1) return {};
  const int64_t rows = j.batch * j.directions * j.segments, states = rows * j.states * j.channels;
  Tensor carry = numbers(like, {states + rows * j.channels});
  j.carry = data(carry), j.sums = j.carry + states;
  return carry;
}

// Warps of their own tiles where there is a kernel of that kind, which finds what a lane moves beside each other in time or in channels.
template <class F>
constexpr bool has_warps = F::P == 4 && F::varying;
template <class F>
static bool takes_warps(const Job& j) {
  return has_warps<F> && (!F::cross || j.rank <= kMostRanks);
}
template <class F, bool outputs>
static void launch_forward(const Job& j) {
  if constexpr (has_warps<F>) {
    if constexpr (F::cross) {
      if (takes_warps<F>(j)) return launch(warp_forward_kernel<true, false, outputs>, launch_blocks(j), 128, warp_forward_bytes<true>(j.rank), j);
    } else {
      const size_t bytes = warp_forward_bytes<false>(0);
      if (j.u.time_stride == 1) return launch(warp_forward_kernel<false, true, outputs>, launch_blocks(j), 128, bytes, j);
      return launch(warp_forward_kernel<false, false, outputs>, launch_blocks(j), 128, bytes, j);
    }
  }
  launch(scan_forward_kernel<F, outputs>, launch_blocks(j), F::threads, F::forward_bytes, j);
}
template <bool time_first, bool gradients>
static void launch_warps_backward(const Job& j) {
  const size_t bytes = warp_backward_bytes<false>(0);
  if (j.z.data != nullptr) return launch(warp_backward_kernel<false, time_first, true, gradients>, launch_blocks(j), 128, bytes, j);
  launch(warp_backward_kernel<false, time_first, false, gradients>, launch_blocks(j), 128, bytes, j);
}
template <class F, bool gradients>
static void launch_backward(const Job& j) {
  if constexpr (has_warps<F>) {
    if constexpr (F::cross) {
      if (takes_warps<F>(j)) return launch(warp_backward_kernel<true, false, false, gradients>, launch_blocks(j), 128, warp_backward_bytes<true>(j.rank), j);
    } else {
      return j.u.time_stride == 1 ? launch_warps_backward<true, gradients>(j) : launch_warps_backward<false, gradients>(j);
    }
  }
  if constexpr (gradients) {
    launch(scan_backward_kernel<F>, launch_blocks(j), F::threads, F::backward_bytes, j);
  } else {
    launch(adjoint_kernel<F>, launch_blocks(j), F::threads, F::backward_bytes, j);
  }
}
// The blocks' shares of the gradients of B and C. Where many directions' of a large map would be most of what a backward pass needs, they are in bfloat16 if
// the gradients are. (Not in float16: shares may be larger than sums.)
template <class F>
static Tensor make_partial(Job& j, const Tensor& like) {
  const bool halves = F::cross && like.scalar_type() == at::kBFloat16 && takes_warps<F>(j);
  Tensor partial = at::empty({j.batch, j.groups * j.group_blocks, j.length, 2 * j.states}, like.options().dtype(halves ? at::kBFloat16 : at::kFloat));
  j.partial = partial.data_ptr(), j.partial_type = scalar(partial);
  return partial;
}

// One state and a map that all directions share: a form whose sums over directions fit into shared memory twice a multiprocessor, then once, else none.
// Fewer channels a block where there would be too few blocks. Calls `body(form, element, blocks)` and gives back whether there is one.
template <class Body>
static bool with_one(const Job& j, int summary, const Body& body) {
  const int64_t widest = std::max({j.u.time_stride, j.weights.time_stride, j.directions * j.channels}) * 4;
  if (j.rank > kOneMostRanks || j.length * widest >= (int64_t(1) << 31)) return false;
  const SharedLimits limits = shared_limits();
  const int64_t enough = 2 * multiprocessors();
  bool done = false;
  auto attempt = [&](auto form, size_t limit, bool any) {
    using F = decltype(form);
    const int64_t blocks = j.batch * ((j.channels + F::channels - 1) / F::channels);
    if (done || OneShared<F>::bytes(j.length, j.rank, summary) > limit || !(any || blocks >= enough)) return;
    done = true;
    if (j.u.type == Scalar::f32) return body(form, float(), blocks);
    if (j.u.type == Scalar::bf16) return body(form, c10::BFloat16(), blocks);
    body(form, c10::Half(), blocks);
  };
  const size_t half = limits.multiprocessor / 2 - 1024;  // a block takes another kilobyte
  attempt(OneForm<32, true>(), half, false);
  attempt(OneForm<16, true>(), half, false);
  attempt(OneForm<8, true>(), half, true);
  attempt(OneForm<8, true>(), limits.block, true);
  attempt(OneForm<16, false>(), limits.block, false);
  return done;
}

// ---- one scan ----------------------------------------------------------------------------------------------------------------

struct PreparedScan {
  Job job;
  Tensor a, b, c, d, bias;
};
static Weights weights(const Tensor& t, Tensor& copy) {
  Weights w{};
  w.groups = t.dim() == 4 ? t.size(1) : 1;
  if (t.dim() == 2) {
    copy = small(t);
    w.constant = copy.data_ptr();
  } else {
    w.sequence = sequence(t, t.dim() - 2);
    w.group_stride = t.dim() == 4 ? t.stride(1) : 0;
  }
  return w;
}
static PreparedScan prepare(const ScanArguments& in) {
  check_scan(in);
  check_supported("selective_scan", in.u, in.a.size(1));
  PreparedScan p;
  Job& j = p.job;
  j = {};
  j.batch = in.u.size(0), j.channels = in.u.size(1), j.length = in.u.size(2), j.states = in.a.size(1);
  j.directions = j.launch_directions = 1;
  j.u = sequence(in.u), j.delta = sequence(in.delta), j.z = sequence(in.z);
  j.b = weights(in.b, p.b), j.c = weights(in.c, p.c);
  j.groups = std::lcm(j.b.groups, j.c.groups);
  p.a = small(in.a), p.d = small(in.d), p.bias = small(in.delta_bias);
  j.a = data(p.a), j.d = data(p.d), j.bias = data(p.bias), j.softplus = in.softplus;
  return p;
}

static std::tuple<Tensor, Tensor, Tensor> forward(const ScanArguments& in, bool with_checkpoints) {
  const DeviceOf device(in.u);
  PreparedScan p = prepare(in);
  Job& j = p.job;
  Tensor out = at::empty_like(in.u), last_state = numbers(in.u, {j.batch, j.channels, j.states}), checkpoints;
  j.out = sequence(out), j.last_state = data(last_state);
  if (with_checkpoints) {
    checkpoints = numbers(in.u, {j.batch, (j.length + kChunk - 1) / kChunk, j.states, j.channels});
    j.checkpoints = data(checkpoints);
  }
  with_form<false>(j, [&](auto form) {
    using F = decltype(form);
    cut<F>(j);
    const Tensor carry = make_carry(j, in.u);
    if (j.segments > 1) {
      launch_forward<F, false>(j);
      add_up(j, false, nullptr);
    }
    launch_forward<F, true>(j);
  });
  return {out, last_state, checkpoints};
}

static Tensor merge(const Job& j, const Tensor& like, int64_t first) {
  Tensor gradient = at::empty_like(like);
  Tensor unused;
  const Weights w = weights(gradient, unused);
  const MergeJob m{j.batch, j.length, w.groups, j.groups * j.group_blocks, 2 * j.states, first, j.states, j.partial, j.partial_type, w.sequence, w.group_stride, nullptr};
  launch(merge_kernel, blocks_of(m.batch * m.groups * m.length * m.count), 128, 0, m);
  return gradient;
}

static ScanGradients backward(const OptionalTensor& grad_out, const OptionalTensor& grad_last_state, const ScanArguments& in,
                              const Tensor& checkpoints) {
  const DeviceOf device(in.u);
  PreparedScan p = prepare(in);
  Job& j = p.job;
  const Check check{"selective_scan_backward", in.u, "u"};
  if (given(grad_out)) check.floating("grad_out", *grad_out), check.shape("grad_out", *grad_out, in.u.sizes());
  if (given(grad_last_state)) {
    check.full("grad_last_state", *grad_last_state);
    check.shape("grad_last_state", *grad_last_state, {j.batch, j.channels, j.states});
  }
  check.full("checkpoints", checkpoints);
  check.shape("checkpoints", checkpoints, {j.batch, (j.length + kChunk - 1) / kChunk, j.states, j.channels});
  if (!checkpoints.is_contiguous()) check.fail("checkpoints is not contiguous, expected it as made by selective_scan_forward");
  const Tensor last = small(grad_last_state), none = numbers(in.u, {0});
  Tensor grad_u = at::empty_like(in.u), grad_delta = at::empty_like(in.delta), grad_z = given(in.z) ? at::empty_like(*in.z) : none;
  j.checkpoints = data(checkpoints), j.grad_last_state = data(last);
  j.grad_out = sequence(grad_out), j.grad_u = sequence(grad_u), j.grad_delta = sequence(grad_delta);
  if (given(in.z)) j.grad_z = sequence(grad_z);
  ScanGradients result;
  with_form<false>(j, [&](auto form) {
    using F = decltype(form);
    cut<F>(j);
    const Tensor carry = make_carry(j, in.u);
    if (j.segments > 1) {
      launch_backward<F, false>(j);
      add_up(j, true, j.grad_last_state);
    }
    const int64_t rows = j.batch * j.segments;
    Tensor parts_a = numbers(in.u, {rows, j.channels, j.states});
    Tensor parts_b = in.b.dim() == 2 ? at::empty_like(parts_a) : Tensor(), parts_c = in.c.dim() == 2 ? at::empty_like(parts_a) : Tensor();
    Tensor parts_d = given(in.d) ? numbers(in.u, {rows, j.channels}) : Tensor();
    Tensor parts_bias = given(in.delta_bias) ? numbers(in.u, {rows, j.channels}) : Tensor();
    Tensor partial;
    if (in.b.dim() != 2 || in.c.dim() != 2) partial = make_partial<F>(j, in.b);
    j.grad_a = data(parts_a), j.grad_b = data(parts_b), j.grad_c = data(parts_c), j.grad_d = data(parts_d), j.grad_bias = data(parts_bias);
    launch_backward<F, true>(j);
    auto weight = [&](const Tensor& like, const Tensor& parts, int64_t offset) {
      return like.dim() == 2 ? parts.sum(0).to(like.scalar_type()) : merge(j, like, offset);
    };
    result = {grad_u,
              grad_delta,
              parts_a.sum(0).to(in.a.scalar_type()),
              weight(in.b, parts_b, 0),
              weight(in.c, parts_c, j.states),
              given(in.d) ? parts_d.sum(0).to(in.d->scalar_type()) : none,
              grad_z,
              given(in.delta_bias) ? parts_bias.sum(0).to(in.delta_bias->scalar_type()) : none};
  });
  return result;
}

// ---- several directions ------------------------------------------------------------------------------------------------------

struct PreparedCross {
  Job job;
  Tensor u, weights, dt_weight, a, d, bias, orders;
};
static Tensor channels_last(const Tensor& t) { return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous(); }
// (batch, token, channel) as (batch, channel, token).
static Sequence tokens_of(const Tensor& t) { return {t.data_ptr(), scalar(t), t.stride(0), 1, t.stride(-2)}; }

static void describe_tokens(PreparedCross& p) {
  p.job.u = tokens_of(p.u);
  p.job.weights = {p.weights.data_ptr(), scalar(p.weights), p.weights.stride(0), 1, p.weights.stride(1)};
  p.job.weights_direction = p.weights.stride(2);
  const Tensor& w = p.weights;
  const int64_t size = w.element_size(), row = w.size(3) * size;
  auto whole = [&](int64_t bytes) { return bytes % 4 == 0; };
  const bool words = whole(row) && whole(w.stride(0) * size) && whole(w.stride(1) * size) && whole(w.stride(2) * size) && whole(reinterpret_cast<intptr_t>(w.data_ptr()));
  p.job.token_words = words && row <= kMostTokenBytes ? int(row / 4) : 0;
}
static PreparedCross prepare(const CrossArguments& in) {
  check_cross(in);
  check_supported("cross_selective_scan", in.u, in.a.size(2));
  PreparedCross p;
  Job& j = p.job;
  j = {};
  p.u = channels_last(in.u), p.weights = channels_last(in.weights), p.orders = in.orders.contiguous();
  p.a = small(in.a), p.d = small(in.d), p.bias = small(in.delta_bias), p.dt_weight = small(in.dt_weight.transpose(1, 2));
  j.batch = in.u.size(0), j.channels = in.u.size(-1), j.length = in.u.size(-2), j.states = in.a.size(2), j.groups = 1;
  j.directions = in.orders.size(0), j.rank = in.dt_weight.size(2);
  j.b.groups = j.c.groups = 1;
  j.u_direction = in.shared() ? 0 : p.u.stride(1);
  describe_tokens(p);
  j.a = data(p.a), j.d = data(p.d), j.bias = data(p.bias), j.dt_weight = data(p.dt_weight), j.softplus = in.softplus;
  j.orders = p.orders.const_data_ptr<int32_t>();
  return p;
}

// Whether there may be a form for it; then the map and what its tokens say have one element type, and an even number of ranks.
static bool prepare_one(const CrossArguments& in, PreparedCross& p) {
  if (in.a.size(2) != 1 || !in.shared()) return false;
  if (p.u.scalar_type() != p.weights.scalar_type()) p.u = p.u.to(at::kFloat), p.weights = p.weights.to(at::kFloat);
  // Read pair by pair.
  const Tensor& w = p.weights;
  if (p.job.rank % 2 != 0) {
    const int64_t rank = p.job.rank++;
    p.weights = at::cat({w.slice(3, 0, rank), at::zeros_like(w.slice(3, 0, 1)), w.slice(3, rank)}, 3);
    p.dt_weight = at::constant_pad_nd(p.dt_weight, {0, 0, 0, 1});
    p.job.dt_weight = data(p.dt_weight);
  } else if (w.stride(0) % 2 != 0 || w.stride(1) % 2 != 0 || w.stride(2) % 2 != 0 || reinterpret_cast<uintptr_t>(w.data_ptr()) % (2 * w.element_size()) != 0) {
    p.weights = w.clone(at::MemoryFormat::Contiguous);
  }
  describe_tokens(p);
  return true;
}

// Gradients of dt_weight (K, D, numbers), of which the ranks' are wanted: what step sizes' gradients (B, L, K, D) come to with the tokens' numbers
// (B, L, K, numbers). One product of all directions with all, of which the diagonal is taken, in as many parts of the batch as fill a GPU; the parts are
// added in order.
static Tensor dt_weight_gradients(const Tensor& delta, const Tensor& tokens) {
  const int64_t batch = delta.size(0), length = delta.size(1), directions = delta.size(2), channels = delta.size(3), numbers = tokens.size(3);
  const int64_t tiles = (directions * channels + 127) / 128 * ((directions * numbers + 63) / 64);
  int64_t parts = batch;
  while (parts > 1 && (batch % parts != 0 || parts * tiles > 2 * multiprocessors())) parts--;
  Tensor left = delta.reshape({parts, batch / parts * length, directions * channels}).transpose(1, 2);
  Tensor right = tokens.reshape({parts, batch / parts * length, directions * numbers});
  Tensor all;
  if (delta.is_cuda() && delta.scalar_type() != at::kFloat) {
    all = at::bmm(left, right, at::kFloat);
  } else {
    all = at::bmm(left.to(at::kFloat), right.to(at::kFloat));
  }
  return (parts > 1 ? all.sum(0) : all[0]).view({directions, channels, directions, numbers}).diagonal(0, 0, 2).permute({2, 0, 1});
}
static CrossGradients gradients(const CrossArguments& in, const Tensor& u, const Tensor& weights, const Tensor& dt_weight, const Tensor& a, const Tensor& d,
                                const Tensor& bias) {
  const Tensor none = numbers(in.u, {0});
  return {u.to(in.u.scalar_type()),
          weights.to(in.weights.scalar_type()),
          dt_weight.to(in.dt_weight.scalar_type()).contiguous(),
          a.to(in.a.scalar_type()),
          given(in.d) ? d.to(in.d->scalar_type()) : none,
          given(in.delta_bias) ? bias.to(in.delta_bias->scalar_type()) : none};
}
// One state: a single launch, then what its step sizes' gradients are made into.
static std::optional<CrossGradients> backward_of_one(const Tensor& dy, const CrossArguments& in, PreparedCross& p) {
  Job& j = p.job;
  if (!prepare_one(in, p)) return std::nullopt;
  std::optional<CrossGradients> result;
  with_one(j, 4, [&](auto form, auto element, int64_t blocks) {
    using F = decltype(form);
    const at::ScalarType kind = p.u.scalar_type();
    const Tensor given_dy = dy.to(kind);
    Tensor grad_u = at::empty(in.u.sizes(), in.u.options().dtype(F::resident ? kind : at::kFloat));
    Tensor grad_delta = at::empty({j.batch, j.length, j.directions, j.channels}, p.u.options());
    Tensor grad_weights = at::empty({j.batch, j.length, j.directions, j.rank + 2}, p.u.options());
    using X = decltype(element);
    Tensor parts = numbers(in.u, {3, j.batch, j.directions, j.channels});
    Tensor shares = at::empty({j.directions, blocks, j.length, int64_t(sizeof(Shares<Share<X>>))}, in.u.options().dtype(at::kByte));
    j.grad_out = tokens_of(given_dy), j.grad_u = tokens_of(grad_u);
    j.grad_delta = {grad_delta.data_ptr(), scalar(grad_delta), grad_delta.stride(0), 1, grad_delta.stride(1)};
    j.grad_a = data(parts), j.grad_d = j.grad_a + parts.stride(0), j.grad_bias = j.grad_d + parts.stride(0), j.partial = shares.data_ptr();
    launch(one_backward_kernel<F, X>, blocks, kOneThreads, OneShared<F>::bytes(j.length, j.rank, 4), j);
    // Products of all of a token's numbers, which are an even count as a rule; those of B and C are zero, and come from the blocks' shares.
    Tensor of_numbers = at::zeros({j.directions, j.channels, j.rank + 2}, p.u.options());
    of_numbers.slice(2, 0, j.rank).copy_(p.dt_weight.transpose(1, 2));
    Tensor grad_rows = grad_weights.view({-1, j.directions, j.rank + 2}).transpose(0, 1);
    at::bmm_out(grad_rows, grad_delta.view({-1, j.directions, j.channels}).transpose(0, 1), of_numbers);
    const Tensor of_b = grad_weights.slice(3, j.rank);
    const Sequence to{of_b.data_ptr(), scalar(of_b), of_b.stride(0), 1, of_b.stride(1)};
    const OneMergeJob m{j.batch, j.directions, blocks / j.batch, j.length, shares.data_ptr(), j.orders, to, of_b.stride(2)};
    launch(one_merge_kernel<X>, blocks_of(m.batch * m.directions * m.length), 128, 0, m);
    shares = Tensor();
    Tensor grad_dt_weight = dt_weight_gradients(grad_delta, p.weights).slice(2, 0, in.dt_weight.size(2));
    if (in.dt_weight.size(2) < j.rank) grad_weights = at::cat({grad_weights.slice(3, 0, j.rank - 1), grad_weights.slice(3, j.rank)}, 3);
    const Tensor sums = parts.sum(1);
    result = gradients(in, grad_u, grad_weights, grad_dt_weight, sums[0].unsqueeze(2), sums[1], sums[2]);
  });
  return result;
}

// One pass a direction, so that sums over directions are formed in their order; what finds the segments' states does all directions at once.
static std::tuple<Tensor, Tensor> forward(const CrossArguments& in, bool with_checkpoints) {
  const DeviceOf device(in.u);
  PreparedCross p = prepare(in);
  Job& j = p.job;
  Tensor out, checkpoints;
  j.chunks = (j.length + kChunk - 1) / kChunk;
  if (with_checkpoints) {
    checkpoints = numbers(in.u, {j.batch, j.directions, j.chunks, j.states, j.channels});
    j.checkpoints = data(checkpoints);
  }
  const bool one = prepare_one(in, p) && with_one(j, 2, [&](auto form, auto element, int64_t blocks) {
    using F = decltype(form);
    out = at::empty({j.batch, j.length, j.channels}, in.u.options().dtype(F::resident ? p.u.scalar_type() : at::kFloat));
    j.out = tokens_of(out);
    launch(one_forward_kernel<F, decltype(element)>, blocks, kOneThreads, OneShared<F>::bytes(j.length, j.rank, 2), j);
  });
  if (one) return {out.to(in.u.scalar_type()), checkpoints};
  out = numbers(in.u, {j.batch, j.length, j.channels});
  j.out = tokens_of(out);
  with_form<true>(j, [&](auto form) {
    using F = decltype(form);
    j.launch_directions = 1;
    cut<F>(j);
    const Tensor carry = make_carry(j, in.u);
    if (j.segments > 1) {
      j.launch_directions = j.directions;
      launch_forward<F, false>(j);
      add_up(j, false, nullptr);
      j.launch_directions = 1;
    }
    for (j.first_direction = 0; j.first_direction < j.directions; j.first_direction++) {
      j.add = j.first_direction > 0;
      launch_forward<F, true>(j);
    }
  });
  return {out.to(in.u.scalar_type()), checkpoints};
}

static CrossGradients backward(const Tensor& grad_out, const CrossArguments& in, const Tensor& checkpoints) {
  const DeviceOf device(in.u);
  PreparedCross p = prepare(in);
  Job& j = p.job;
  const Check check{"cross_selective_scan_backward", in.u, "u"};
  check.floating("grad_out", grad_out);
  check.shape("grad_out", grad_out, {j.batch, j.length, j.channels});
  check.full("checkpoints", checkpoints);
  check.shape("checkpoints", checkpoints, {j.batch, j.directions, (j.length + kChunk - 1) / kChunk, j.states, j.channels});
  if (!checkpoints.is_contiguous()) check.fail("checkpoints is not contiguous, expected it as made by cross_selective_scan_forward");
  const Tensor dy = channels_last(grad_out);
  j.checkpoints = data(checkpoints), j.chunks = (j.length + kChunk - 1) / kChunk;
  if (auto result = backward_of_one(dy, in, p)) return *result;
  // The gradient of one direction's step sizes stands in memory, token by token; what it is made of are matrix products.
  Tensor grad_u = numbers(in.u, in.u.sizes()), grad_weights = at::empty(in.weights.sizes(), in.weights.options());
  const at::ScalarType kind = in.u.scalar_type() == in.weights.scalar_type() ? in.u.scalar_type() : at::kFloat;
  Tensor grad_delta = at::empty({j.batch, j.length, j.channels}, in.u.options().dtype(kind));
  Tensor grad_dt_weight = numbers(in.u, {j.directions, j.channels, j.rank});
  j.grad_out = tokens_of(dy), j.grad_u = tokens_of(grad_u), j.grad_delta = tokens_of(grad_delta);
  CrossGradients result;
  with_form<true>(j, [&](auto form) {
    using F = decltype(form);
    j.launch_directions = 1;
    cut<F>(j);
    const Tensor carry = make_carry(j, in.u);
    if (j.segments > 1) {
      j.launch_directions = j.directions;
      launch_backward<F, false>(j);
      add_up(j, true, nullptr);
      j.launch_directions = 1;
    }
    // One slot a (batch, direction, segment).
    Tensor parts_a = numbers(in.u, {j.batch, j.directions, j.segments, j.channels, j.states});
    Tensor parts_d = numbers(in.u, {j.batch, j.directions, j.segments, j.channels}), parts_bias = at::empty_like(parts_d);
    const Tensor partial = make_partial<F>(j, in.weights);
    j.grad_a = data(parts_a), j.grad_d = data(parts_d), j.grad_bias = data(parts_bias);
    // The direction's own stride where each has its own tokens: the job's `u_direction` serves the gradient too, so it must have that layout.
    const int64_t u_direction = j.u_direction, grad_direction = in.shared() ? 0 : grad_u.stride(1);
    const Tensor tokens = p.weights.slice(3, 0, j.rank);
    for (int64_t k = 0; k < j.directions; k++) {
      j.first_direction = k;
      j.add = in.shared() && k > 0;
      j.u_direction = u_direction;
      j.grad_u.data = data(grad_u) + k * (grad_direction - u_direction);
      launch_backward<F, true>(j);
      const Tensor of_states = grad_weights.select(2, k).slice(2, j.rank);
      const Sequence to{of_states.data_ptr(), scalar(of_states), of_states.stride(0), 1, of_states.stride(1)};
      const MergeJob m{j.batch, j.length, 1, j.group_blocks, 2 * j.states, 0, 2 * j.states, j.partial, j.partial_type, to, 0, j.orders + k * j.length};
      launch(merge_kernel, blocks_of(m.batch * m.length * m.count), 128, 0, m);
      const Tensor flat = grad_delta.view({-1, j.channels});
      grad_weights.select(2, k).slice(2, 0, j.rank).copy_(at::matmul(flat, p.dt_weight.select(0, k).t().to(kind)).view({j.batch, j.length, j.rank}));
      grad_dt_weight.slice(0, k, k + 1).copy_(dt_weight_gradients(grad_delta.unsqueeze(2), tokens.slice(2, k, k + 1).to(kind)));
    }
    constexpr int64_t over[] = {0, 2};  // batch and segments
    result = gradients(in, grad_u, grad_weights, grad_dt_weight, parts_a.sum(over), parts_d.sum(over), parts_bias.sum(over));
  });
  return result;
}

// ---- convolution -------------------------------------------------------------------------------------------------------------

struct PreparedConv {
  ConvJob job;
  Tensor weight, bias;
};
static PreparedConv prepare(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Activation activation) {
  PreparedConv p;
  p.job = {};
  p.job.silu = check_conv(x, weight, bias, activation);
  check_supported("causal_conv1d", x, 1);
  p.weight = small(weight), p.bias = small(bias);
  p.job.batch = x.size(0), p.job.channels = x.size(1), p.job.length = x.size(2), p.job.width = weight.size(1);
  p.job.x = sequence(x), p.job.weight = data(p.weight), p.job.bias = data(p.bias);
  return p;
}
static Tensor conv_forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Activation activation) {
  const DeviceOf device(x);
  PreparedConv p = prepare(x, weight, bias, activation);
  Tensor out = at::empty_like(x);
  p.job.out = sequence(out);
  launch(conv_forward_kernel, blocks_of(x.numel()), 128, 0, p.job);
  return out;
}
static std::tuple<Tensor, Tensor, Tensor> conv_backward(const Tensor& grad_out, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                                        Activation activation) {
  const DeviceOf device(x);
  PreparedConv p = prepare(x, weight, bias, activation);
  ConvJob& j = p.job;
  const Check check{"causal_conv1d_backward", x, "x"};
  check.floating("grad_out", grad_out);
  check.shape("grad_out", grad_out, x.sizes());
  Tensor grad_x = at::empty_like(x), sums = numbers(x, x.sizes());
  Tensor parts_weight = numbers(x, {j.batch, j.channels, j.width}), parts_bias = numbers(x, {j.batch, j.channels});
  j.grad_out = sequence(grad_out), j.out = sequence(grad_x), j.grad_sums = data(sums);
  j.grad_weight = data(parts_weight), j.grad_bias = data(parts_bias);
  launch(conv_grad_sums_kernel, blocks_of(x.numel()), 128, 0, j);
  launch(conv_grad_x_kernel, blocks_of(x.numel()), 128, 0, j);
  launch(conv_grad_weight_kernel, j.batch * j.channels, 128, 128 * sizeof(float), j);
  return {grad_x, parts_weight.sum(0).to(weight.scalar_type()), given(bias) ? parts_bias.sum(0).to(bias->scalar_type()) : numbers(x, {0})};
}

// ---- registrations -----------------------------------------------------------------------------------------------------------

#define VM_SCAN_PARAMETERS                                                                                          \
  const Tensor &u, const Tensor &delta, const Tensor &a, const Tensor &b, const Tensor &c, const OptionalTensor &d, \
      const OptionalTensor &z, const OptionalTensor &delta_bias, bool softplus
#define VM_SCAN_ARGUMENTS u, delta, a, b, c, d, z, delta_bias, softplus
#define VM_CROSS_PARAMETERS                                                                                \
  const Tensor &u, const Tensor &weights, const Tensor &dt_weight, const Tensor &a, const OptionalTensor &d, \
      const OptionalTensor &delta_bias, const Tensor &orders, bool softplus
#define VM_CROSS_ARGUMENTS u, weights, dt_weight, a, d, delta_bias, orders, softplus

static std::tuple<Tensor, Tensor> scan(VM_SCAN_PARAMETERS) {
  auto [out, last_state, none] = forward(ScanArguments{VM_SCAN_ARGUMENTS}, false);
  return {out, last_state};
}
static std::tuple<Tensor, Tensor, Tensor> scan_save(VM_SCAN_PARAMETERS) { return forward(ScanArguments{VM_SCAN_ARGUMENTS}, true); }
static ScanGradients scan_grad(const OptionalTensor& grad_out, const OptionalTensor& grad_last_state, VM_SCAN_PARAMETERS,
                               const Tensor& checkpoints) {
  return backward(grad_out, grad_last_state, ScanArguments{VM_SCAN_ARGUMENTS}, checkpoints);
}
static Tensor cross(VM_CROSS_PARAMETERS) { return std::get<0>(forward(CrossArguments{VM_CROSS_ARGUMENTS}, false)); }
static std::tuple<Tensor, Tensor> cross_save(VM_CROSS_PARAMETERS) { return forward(CrossArguments{VM_CROSS_ARGUMENTS}, true); }
static CrossGradients cross_grad(const Tensor& grad_out, VM_CROSS_PARAMETERS, const Tensor& checkpoints) {
  return backward(grad_out, CrossArguments{VM_CROSS_ARGUMENTS}, checkpoints);
}

TORCH_LIBRARY_IMPL(vision_mamba, VM_KEY, m) {
  m.impl("selective_scan", scan);
  m.impl("selective_scan_forward", scan_save);
  m.impl("selective_scan_backward", scan_grad);
  m.impl("cross_selective_scan", cross);
  m.impl("cross_selective_scan_forward", cross_save);
  m.impl("cross_selective_scan_backward", cross_grad);
  m.impl("causal_conv1d", conv_forward);
  m.impl("causal_conv1d_backward", conv_backward);
}

}  // namespace vision_mamba

extern "C" {
// Read from the file before it is loaded; ends with a semicolon.
__attribute__((visibility("default"), used)) extern const char vision_mamba_ops_cuda_marker[] =
    "vision_mamba_ops_cuda built for libtorch " TORCH_VERSION ";";
}
