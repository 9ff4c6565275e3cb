// Linear attention with decay over packed tokens on a CPU, token by token: the fast twin of kernels/linear.py.
//
// One recurrence, S_i = keep_i S_(i-1) + key_i value_i^T and out_i = query_i S_i, serves four times, as (query, key, value):
//   the output (q, k, v); the gradient of q (d_out, v, k); those of k (v, d_out, q) and v (k, q, d_out) from the last token back.
// The rate's gradient needs pairs weighted by elapsed time: U_i = keep_i (U_(i-1) + elapsed_i S_(i-1)) beside the gradient of q,
// and minus q_i . (d_out_i U_i) summed. All terms of U are of one sign in time, so that nothing large cancels on long clocks.
#include "rows.h"

namespace {

struct Lines {  // rows of one head's tokens, packed: zeros behind the width
  float* at;
  int64_t width, ld;

  const float* row(int64_t i) const { return at + i * ld; }
};

struct Walk {
  int64_t n;
  Lines query, key, value;
  const float* keep;     // [n] from the token before; null without decay
  const float* elapsed;  // [n] likewise; read for U alone
  bool back;             // from the last token to the first
};

struct LinearScratch {
  std::vector<float> q, k, v, d_out, out, elapsed, keep, state;
};

// Columns of N vectors of all rows of the state, over all tokens. With U, its outputs go to `weighed`.
template <int N, bool U>
void walk_columns(const Walk& w, int64_t column, float* out, float* weighed, float* state) {
  constexpr int64_t wide = N * LANES;
  float* sums = state + w.query.width * wide;
  std::fill(state, state + (U ? 2 : 1) * w.query.width * wide, 0.0f);
  for (int64_t step = 0; step < w.n; step++) {
    const int64_t i = w.back ? w.n - 1 - step : step;
    const int64_t later = w.back ? i + 1 : i;  // the token whose keep lies between this one and the last
    const float kept = step == 0 || !w.keep ? 1.0f : w.keep[later];
    const V keep = all(kept), passed = all(U && step ? kept * w.elapsed[later] : 0.0f);
    const float *query = w.query.row(i), *key = w.key.row(i);
    V value[N], sum[N] = {}, weighed_sum[N] = {};
    for (int c = 0; c < N; c++) value[c] = load(w.value.row(i) + column + c * LANES);
    for (int64_t r = 0; r < w.query.width; r++) {
      const V x = all(query[r]), y = all(key[r]);
      for (int c = 0; c < N; c++) {
        float* s = state + r * wide + c * LANES;
        const V before = load(s), now = before * keep + y * value[c];
        store(s, now);
        sum[c] += x * now;
        if (U) {
          float* u = sums + r * wide + c * LANES;
          const V all_before = load(u) * keep + before * passed;
          store(u, all_before);
          weighed_sum[c] += x * all_before;
        }
      }
    }
    for (int c = 0; c < N; c++) {
      store(out + i * w.value.ld + column + c * LANES, sum[c]);
      if (U) store(weighed + i * w.value.ld + column + c * LANES, weighed_sum[c]);
    }
  }
}

template <bool U>
void walk(const Walk& w, float* out, float* weighed, LinearScratch& scratch) {
  constexpr int wide = U ? 2 : 4;  // what the registers hold
  float* state = sized(scratch.state, 2 * w.query.width * wide * LANES);
  int64_t column = 0;
  for (; column + wide * LANES <= w.value.ld; column += wide * LANES) walk_columns<wide, U>(w, column, out, weighed, state);
  for (; column < w.value.ld; column += LANES) walk_columns<1, U>(w, column, out, weighed, state);
}

struct LinearProblem {
  int64_t heads, width, values;  // K and V
  const int64_t* offsets;
  const float* rate;    // [H] or null
  const double* clock;  // [T] or null
};

// One user's tokens of one head.
struct Head {
  int64_t first, n, head;
  const float *keep = nullptr, *elapsed = nullptr;

  Head(const LinearProblem& p, const Task& task, LinearScratch& scratch)
      : first(p.offsets[task.user]), n(p.offsets[task.user + 1] - p.offsets[task.user]), head(task.head) {
    if (!p.rate || n == 0) return;
    const int64_t padded = up(n, LANES);
    float *passed = sized(scratch.elapsed, padded), *kept = sized(scratch.keep, padded);
    std::fill(passed, passed + padded, 0.0f);
    for (int64_t i = 1; i < n; i++) passed[i] = static_cast<float>(std::max(0.0, p.clock[first + i] - p.clock[first + i - 1]));
    for (int64_t i = 0; i < padded; i += LANES) store(kept + i, exp(load(passed + i) * -p.rate[head]));
    keep = kept, elapsed = passed;
  }

  template <typename T>
  Lines lines(const at::Tensor& x, std::vector<float>& room) const {
    const int64_t width = x.size(2), ld = up(width, LANES);
    float* rows = sized(room, n * ld);
    pack(x.data_ptr<T>() + first * x.stride(0) + head * width, n, width, x.stride(0), rows, ld, n);
    return {rows, width, ld};
  }

  template <typename T>
  void write(const float* rows, at::Tensor& x) const {
    const int64_t width = x.size(2);
    unpack(rows, up(width, LANES), n, width, x.stride(0), x.data_ptr<T>() + first * x.stride(0) + head * width);
  }
};

struct LinearHeld {  // tensors that a LinearProblem points into
  at::Tensor offsets, rate, clock;
};

LinearProblem linear_problem(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& offsets,
                             const std::optional<at::Tensor>& rate, const std::optional<at::Tensor>& clock, LinearHeld& held) {
  TORCH_CHECK(q.dim() == 3 && v.dim() == 3 && k.sizes() == q.sizes(), "q and k must have one shape [T, H, K], and v be [T, H, V]");
  TORCH_CHECK(v.size(0) == q.size(0) && v.size(1) == q.size(1), "v must have the tokens and heads of q");
  TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), "q, k and v must have one type");
  LinearProblem p{q.size(1), q.size(2), v.size(2), nullptr, nullptr, nullptr};
  held.offsets = offsets.to(at::kLong).contiguous();
  check_offsets(held.offsets, q.size(0));
  p.offsets = held.offsets.data_ptr<int64_t>();
  if (rate) {
    TORCH_CHECK(clock && clock->numel() == q.size(0) && rate->numel() == q.size(1), "a rate [H] needs a clock [T]");
    held.rate = rate->to(at::kFloat).contiguous(), held.clock = clock->to(at::kDouble).contiguous();
    p.rate = held.rate.data_ptr<float>(), p.clock = held.clock.data_ptr<double>();
  }
  return p;
}

at::Tensor linear_forward(const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_, const at::Tensor& offsets,
                          const std::optional<at::Tensor>& rate, const std::optional<at::Tensor>& clock) {
  const at::Tensor q = readable(q_), k = readable(k_), v = readable(v_);
  LinearHeld held;
  const LinearProblem p = linear_problem(q, k, v, offsets, rate, clock, held);
  at::Tensor out = at::empty(v.sizes(), v.options());
  const auto chunks = chunks_of(p.offsets, held.offsets.numel() - 1, p.heads, 0);
  LARGEREC_FLOAT_TYPES(q.scalar_type(), "largerec::linear_attention", [&] {
    at::parallel_for(0, chunks.size(), 1, [&](int64_t begin, int64_t end) {
      LinearScratch s;
      for (int64_t c = begin; c < end; c++)
        for (const Task& task : chunks[c]) {
          const Head h(p, task, s);
          const Walk w{h.n, h.lines<scalar_t>(q, s.q), h.lines<scalar_t>(k, s.k), h.lines<scalar_t>(v, s.v), h.keep, nullptr, false};
          float* rows = sized(s.out, h.n * w.value.ld);
          walk<false>(w, rows, nullptr, s);
          h.write<scalar_t>(rows, out);
        }
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_backward(const at::Tensor& d_out_, const at::Tensor& q_, const at::Tensor& k_,
                                                                           const at::Tensor& v_, const at::Tensor& offsets,
                                                                           const std::optional<at::Tensor>& rate, const std::optional<at::Tensor>& clock) {
  const at::Tensor q = readable(q_), k = readable(k_), v = readable(v_), d_out = readable(d_out_.to(v_.scalar_type()));
  LinearHeld held;
  const LinearProblem p = linear_problem(q, k, v, offsets, rate, clock, held);
  at::Tensor d_q = at::empty(q.sizes(), q.options()), d_k = at::empty(q.sizes(), q.options()), d_v = at::empty(v.sizes(), v.options());
  const auto chunks = chunks_of(p.offsets, held.offsets.numel() - 1, p.heads, 0);
  const int64_t n_chunks = static_cast<int64_t>(chunks.size());
  at::Tensor d_rate = at::zeros({n_chunks, p.rate ? p.heads : 0}, at::kDouble);
  LARGEREC_FLOAT_TYPES(q.scalar_type(), "largerec::linear_attention_backward", [&] {
    at::parallel_for(0, n_chunks, 1, [&](int64_t begin, int64_t end) {
      LinearScratch s;
      for (int64_t c = begin; c < end; c++)
        for (const Task& task : chunks[c]) {
          const Head h(p, task, s);
          const Lines queries = h.lines<scalar_t>(q, s.q), keys = h.lines<scalar_t>(k, s.k), values = h.lines<scalar_t>(v, s.v),
                      given = h.lines<scalar_t>(d_out, s.d_out);
          float* rows = sized(s.out, 2 * h.n * std::max(queries.ld, values.ld));
          const Walk of_q{h.n, given, values, keys, h.keep, h.elapsed, false};
          if (p.rate) {
            float* weighed = rows + h.n * queries.ld;
            walk<true>(of_q, rows, weighed, s);
            V sum = {};  // what lies behind the width is zero in both
            for (int64_t e = 0; e < h.n * queries.ld; e += LANES) sum += load(queries.at + e) * load(weighed + e);
            d_rate.data_ptr<double>()[c * p.heads + h.head] -= total(sum);
          } else {
            walk<false>(of_q, rows, nullptr, s);
          }
          h.write<scalar_t>(rows, d_q);
          walk<false>({h.n, values, given, queries, h.keep, nullptr, true}, rows, nullptr, s);
          h.write<scalar_t>(rows, d_k);
          walk<false>({h.n, keys, queries, given, h.keep, nullptr, true}, rows, nullptr, s);
          h.write<scalar_t>(rows, d_v);
        }
    });
  });
  return {d_q, d_k, d_v, d_rate.sum(0).to(at::kFloat)};  // chunks are added in order
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(largerec, m) {
  m.def("linear_attention(Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? rate, Tensor? clock) -> Tensor");
  m.def(
      "linear_attention_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? rate, Tensor? clock) -> (Tensor, "
      "Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(largerec, CPU, m) {
  m.impl("linear_attention", linear_forward);
  m.impl("linear_attention_backward", linear_backward);
}
