// Causal attention over packed tokens on a CPU: the fast twin of kernels/reference.py.
//
// Both kinds read rows of scores s = q k^T (+ position bias + bucketed time bias) and never hold an N x N matrix: a block of ROWS
// rows of scores is made, turned into weights and used. Rows are padded to whole tiles, columns to 32.
#include "rows.h"

namespace {

struct Problem {
  bool softmax;
  double scale;
  int64_t heads, width, longest_table;
  const int64_t* offsets;
  const float* position;  // [H, L] or null
  const float* time;      // [H, 32] or null
  const int64_t* row_time;
  const int64_t* column_time;
  int64_t q_stride, k_stride, v_stride;  // from token to token
};

// Scratch of one chunk, grown as needed and reused from task to task.
struct Scratch {
  std::vector<float> q, k, v, kt, vt, d_out, score, d_score, out, d_k, d_v, reversed;
  std::vector<double> clock;
};

// The biases of one row: what the position table and the clock add to columns j..j+15.
struct RowBias {
  const float* position;  // reversed and shifted, or null
  const float* time;      // 32 entries, or null
  double row;
  const double* columns;

  V at(int64_t j) const {
    V x = {};
    if (position) x += load(position + j);
    if (time) x += looked_up(time, buckets_of(row, columns + j));
    return x;
  }
};

// Where one row's gradients of the biases are added; null where there is no table.
struct RowBiasGradient {
  float* position;  // reversed and shifted
  float* time;      // [32, LANES]
  bool rising;

  void add(const RowBias& bias, int64_t j, V d) const {
    if (position) store(position + j, load(position + j) + d);
    if (time) add_by_bucket(d, buckets_of(bias.row, bias.columns + j), rising, time);
  }
};

inline void silu_row(const RowBias& bias, float scale, float* s, int64_t i, int64_t padded) {
  for (int64_t j = 0; j <= i; j += LANES) {
    const V x = load(s + j) + bias.at(j);
    store(s + j, x * scale / (exp(-x) + 1.0f));
  }
  clear_behind(s, i, padded);
}

inline void softmax_row(const RowBias& bias, float scale, float* s, int64_t i, int64_t padded) {
  V top = all(-INFINITY);
  for (int64_t j = 0; j <= i; j += LANES) {
    V x = load(s + j) * scale + bias.at(j);
    if (j + LANES > i + 1)
      for (int64_t l = i + 1 - j; l < LANES; l++) x[l] = -INFINITY;
    store(s + j, x);
    top = x > top ? x : top;
  }
  const float most = highest(top);
  V sum = {};
  for (int64_t j = 0; j <= i; j += LANES) {
    const V x = load(s + j), e = x == all(-INFINITY) ? V{} : exp(x - most);
    store(s + j, e);
    sum += e;
  }
  const float inverse = 1.0f / total(sum);
  for (int64_t j = 0; j <= i; j += LANES) store(s + j, load(s + j) * inverse);
  clear_behind(s, i, padded);
}

// From a row of scores s and of weight gradients d: weights into s, score gradients into d and into the sums of the biases.
inline void silu_gradient_row(const RowBias& bias, const RowBiasGradient& sums, float scale, float* s, float* d, int64_t i, int64_t padded) {
  clear_behind(d, i, padded);
  for (int64_t j = 0; j <= i; j += LANES) {
    const V x = load(s + j) + bias.at(j);
    const V gate = all(1.0f) / (exp(-x) + 1.0f);
    const V gradient = load(d + j) * scale * gate * ((all(1.0f) - gate) * x + 1.0f);
    store(s + j, x * gate * scale);
    store(d + j, gradient);
    sums.add(bias, j, gradient);
  }
  clear_behind(s, i, padded);
}

inline void softmax_gradient_row(const RowBias& bias, const RowBiasGradient& sums, float scale, float* s, float* d, int64_t i, int64_t padded) {
  softmax_row(bias, scale, s, i, padded);
  clear_behind(d, i, padded);
  V sum = {};
  for (int64_t j = 0; j <= i; j += LANES) sum += load(s + j) * load(d + j);
  const float mean = total(sum);
  for (int64_t j = 0; j <= i; j += LANES) {
    const V gradient = load(s + j) * (load(d + j) - mean);
    store(d + j, gradient);
    sums.add(bias, j, gradient);
  }
}

// What forward and backward share of one task: packed inputs, reversed position table, time order.
template <typename T>
struct Prepared {
  int64_t n, first, n_padded, ld, stride;
  float *q, *k, *v, *kt;
  float* reversed;
  double* clock;
  bool rising;

  Prepared(const Problem& p, const Task& task, const T* q_all, const T* k_all, const T* v_all, Scratch& scratch) {
    first = p.offsets[task.user];
    n = p.offsets[task.user + 1] - first;
    n_padded = up(n, ROWS);
    ld = up(p.width, TILE_COLUMNS);
    stride = p.heads * p.width;
    const int64_t head = task.head * p.width;
    q = sized(scratch.q, n_padded * ld);
    k = sized(scratch.k, n_padded * ld);
    v = sized(scratch.v, n_padded * ld);
    kt = sized(scratch.kt, p.width * n_padded);
    pack(q_all + first * p.q_stride + head, n, p.width, p.q_stride, q, ld, n_padded);
    pack(k_all + first * p.k_stride + head, n, p.width, p.k_stride, k, ld, n_padded);
    pack(v_all + first * p.v_stride + head, n, p.width, p.v_stride, v, ld, n_padded);
    transpose(k, ld, p.width, n_padded, kt);
    reversed = nullptr;
    if (p.position) {
      reversed = sized(scratch.reversed, p.longest_table + LANES);
      for (int64_t d = 0; d < p.longest_table; d++) reversed[p.longest_table - 1 - d] = p.position[task.head * p.longest_table + d];
      std::fill(reversed + p.longest_table, reversed + p.longest_table + LANES, 0.0f);
    }
    clock = nullptr;
    rising = false;
    if (p.time) {
      clock = sized(scratch.clock, n_padded);
      for (int64_t j = 0; j < n; j++) clock[j] = column_clock(p.column_time[first + j]);
      // Padding counts as at the last event's time: its gradient is zero, and the buckets of a vector still fall.
      std::fill(clock + n, clock + n_padded, clock[n - 1]);
      rising = std::is_sorted(clock, clock + n);
    }
  }

  RowBias bias(const Problem& p, const Task& task, int64_t i) const {
    return {reversed ? reversed + p.longest_table - 1 - i : nullptr, p.time ? p.time + task.head * (UNKNOWN_BUCKET + 1) : nullptr,
            p.time ? row_clock(p.row_time[first + i]) : 0, clock};
  }
};

template <typename T>
void forward_task(const Problem& p, const Task& task, const T* q, const T* k, const T* v, T* out, Scratch& scratch) {
  if (p.offsets[task.user + 1] == p.offsets[task.user]) return;
  const Prepared<T> x(p, task, q, k, v, scratch);
  const float scale = static_cast<float>(p.scale);
  float* score = sized(scratch.score, ROWS * x.n_padded);
  float* rows = sized(scratch.out, ROWS * x.ld);
  for (int64_t i0 = 0; i0 < x.n; i0 += ROWS) {
    const int64_t columns = i0 + ROWS;
    product(ROWS, columns, p.width, x.q + i0 * x.ld, x.ld, 1, x.kt, x.n_padded, score, columns, false);
    for (int64_t r = 0; r < ROWS; r++) {
      const int64_t i = std::min(i0 + r, x.n - 1);  // rows behind the history repeat its last one and are not kept
      (p.softmax ? softmax_row : silu_row)(x.bias(p, task, i), scale, score + r * columns, i, columns);
    }
    product(ROWS, x.ld, std::min(columns, x.n), score, columns, 1, x.v, x.ld, rows, x.ld, false);
    const int64_t count = std::min(ROWS, x.n - i0);
    unpack(rows, x.ld, count, p.width, x.stride, out + (x.first + i0) * x.stride + task.head * p.width);
  }
}

template <typename T>
void backward_task(const Problem& p, const Task& task, const T* d_out_all, const T* q, const T* k, const T* v, T* d_q, T* d_k, T* d_v,
                   float* d_position, float* d_time, Scratch& scratch) {
  if (p.offsets[task.user + 1] == p.offsets[task.user]) return;
  const Prepared<T> x(p, task, q, k, v, scratch);
  const float scale = static_cast<float>(p.scale);
  const int64_t at = x.first * x.stride + task.head * p.width;
  float* vt = sized(scratch.vt, p.width * x.n_padded);
  float* d_out = sized(scratch.d_out, x.n_padded * x.ld);
  transpose(x.v, x.ld, p.width, x.n_padded, vt);
  pack(d_out_all + at, x.n, p.width, x.stride, d_out, x.ld, x.n_padded);
  float* score = sized(scratch.score, ROWS * x.n_padded);
  float* d_score = sized(scratch.d_score, ROWS * x.n_padded);
  float* rows = sized(scratch.out, ROWS * x.ld);
  float* dk = sized(scratch.d_k, x.n_padded * x.ld);
  float* dv = sized(scratch.d_v, x.n_padded * x.ld);
  std::fill(dk, dk + x.n_padded * x.ld, 0.0f);
  std::fill(dv, dv + x.n_padded * x.ld, 0.0f);
  for (int64_t i0 = 0; i0 < x.n; i0 += ROWS) {
    const int64_t columns = i0 + ROWS, count = std::min(ROWS, x.n - i0);
    product(ROWS, columns, p.width, x.q + i0 * x.ld, x.ld, 1, x.kt, x.n_padded, score, columns, false);
    product(ROWS, columns, p.width, d_out + i0 * x.ld, x.ld, 1, vt, x.n_padded, d_score, columns, false);
    for (int64_t r = 0; r < count; r++) {
      const int64_t i = i0 + r;  // reversed like the table: column j of row i is distance i - j
      const RowBiasGradient sums{d_position ? d_position + p.longest_table - 1 - i : nullptr, d_time, x.rising};
      (p.softmax ? softmax_gradient_row : silu_gradient_row)(x.bias(p, task, i), sums, scale, score + r * columns, d_score + r * columns, i, columns);
    }
    for (int64_t r = count; r < ROWS; r++) {
      std::fill(score + r * columns, score + (r + 1) * columns, 0.0f);
      std::fill(d_score + r * columns, d_score + (r + 1) * columns, 0.0f);
    }
    product(ROWS, x.ld, std::min(columns, x.n), d_score, columns, 1, x.k, x.ld, rows, x.ld, false);
    if (p.softmax)
      for (int64_t e = 0; e < ROWS * x.ld; e++) rows[e] *= scale;
    unpack(rows, x.ld, count, p.width, x.stride, d_q + at + i0 * x.stride);
    product(columns, x.ld, ROWS, d_score, 1, columns, x.q + i0 * x.ld, x.ld, dk, x.ld, true);
    product(columns, x.ld, ROWS, score, 1, columns, d_out + i0 * x.ld, x.ld, dv, x.ld, true);
  }
  if (p.softmax)
    for (int64_t e = 0; e < x.n_padded * x.ld; e++) dk[e] *= scale;
  unpack(dk, x.ld, x.n, p.width, x.stride, d_k + at);
  unpack(dv, x.ld, x.n, p.width, x.stride, d_v + at);
}

struct Held {  // tensors that a Problem points into
  at::Tensor offsets, position, time, row_time, column_time;
};

Problem problem_of(bool softmax, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& offsets, double scale, const std::optional<at::Tensor>& position,
                   const std::optional<at::Tensor>& time, const std::optional<at::Tensor>& row_time,
                   const std::optional<at::Tensor>& column_time, Held& held) {
  Problem p{softmax, scale, q.size(1), q.size(2), 0, nullptr, nullptr, nullptr, nullptr, nullptr, q.stride(0), k.stride(0), v.stride(0)};
  TORCH_CHECK(q.dim() == 3 && k.sizes() == q.sizes() && v.sizes() == q.sizes(), "q, k and v must have one shape [T, H, K]");
  TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), "q, k and v must have one type");
  held.offsets = offsets.to(at::kLong).contiguous();
  p.offsets = held.offsets.data_ptr<int64_t>();
  check_offsets(held.offsets, q.size(0));
  if (position) {
    TORCH_CHECK(position->dim() == 2 && position->size(0) == q.size(1), "the position table must be [H, L]");
    held.position = position->to(at::kFloat).contiguous();
    p.position = held.position.data_ptr<float>();
    p.longest_table = held.position.size(1);
    for (int64_t b = 0; b + 1 < held.offsets.numel(); b++)
      TORCH_CHECK(p.offsets[b + 1] - p.offsets[b] <= p.longest_table, "a history is longer than the position table");
  }
  if (time) {
    TORCH_CHECK(row_time && column_time, "a time table needs row and column times");
    TORCH_CHECK(time->size(0) == q.size(1) && time->size(1) == UNKNOWN_BUCKET + 1, "the time table must be [H, 32]");
    TORCH_CHECK(row_time->numel() == q.size(0) && column_time->numel() == q.size(0), "times must be [T]");
    TORCH_CHECK(row_time->scalar_type() == at::kLong && column_time->scalar_type() == at::kLong, "times must be int64");
    held.time = time->to(at::kFloat).contiguous();
    held.row_time = row_time->contiguous();
    held.column_time = column_time->contiguous();
    p.time = held.time.data_ptr<float>();
    p.row_time = held.row_time.data_ptr<int64_t>();
    p.column_time = held.column_time.data_ptr<int64_t>();
  }
  return p;
}

at::Tensor forward(const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_, const at::Tensor& offsets, bool softmax, double scale,
                   const std::optional<at::Tensor>& position, const std::optional<at::Tensor>& time,
                   const std::optional<at::Tensor>& row_time, const std::optional<at::Tensor>& column_time) {
  const at::Tensor q = readable(q_), k = readable(k_), v = readable(v_);
  Held held;
  const Problem p = problem_of(softmax, q, k, v, offsets, scale, position, time, row_time, column_time, held);
  at::Tensor out = at::empty(v.sizes(), v.options());
  const auto chunks = chunks_of(p.offsets, held.offsets.numel() - 1, p.heads);
  LARGEREC_FLOAT_TYPES(q.scalar_type(), "largerec::attention", [&] {
    at::parallel_for(0, chunks.size(), 1, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      for (int64_t c = begin; c < end; c++)
        for (const Task& task : chunks[c])
          forward_task(p, task, q.data_ptr<scalar_t>(), k.data_ptr<scalar_t>(), v.data_ptr<scalar_t>(), out.data_ptr<scalar_t>(), scratch);
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& d_out_, const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_, const at::Tensor& offsets, bool softmax,
    double scale, const std::optional<at::Tensor>& position, const std::optional<at::Tensor>& time,
    const std::optional<at::Tensor>& row_time, const std::optional<at::Tensor>& column_time) {
  const at::Tensor q = readable(q_), k = readable(k_), v = readable(v_), d_out = d_out_.to(v_.scalar_type()).contiguous();
  Held held;
  const Problem p = problem_of(softmax, q, k, v, offsets, scale, position, time, row_time, column_time, held);
  at::Tensor d_q = at::empty(q.sizes(), q.options()), d_k = at::empty_like(d_q), d_v = at::empty_like(d_q);
  const auto chunks = chunks_of(p.offsets, held.offsets.numel() - 1, p.heads);
  const int64_t n_chunks = static_cast<int64_t>(chunks.size()), buckets = UNKNOWN_BUCKET + 1;
  const int64_t distances = p.position ? p.longest_table + LANES : 0;  // whole vectors are added
  at::Tensor d_position = at::zeros({n_chunks, p.heads, distances}, at::kFloat);
  at::Tensor d_time = at::zeros({n_chunks, p.heads, p.time ? buckets : 0, LANES}, at::kFloat);
  LARGEREC_FLOAT_TYPES(q.scalar_type(), "largerec::attention_backward", [&] {
    at::parallel_for(0, n_chunks, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      for (int64_t c = begin; c < end; c++)
        for (const Task& task : chunks[c])
          backward_task(p, task, d_out.data_ptr<scalar_t>(), q.data_ptr<scalar_t>(), k.data_ptr<scalar_t>(), v.data_ptr<scalar_t>(),
                        d_q.data_ptr<scalar_t>(), d_k.data_ptr<scalar_t>(), d_v.data_ptr<scalar_t>(),
                        p.position ? d_position.data_ptr<float>() + (c * p.heads + task.head) * distances : nullptr,
                        p.time ? d_time.data_ptr<float>() + (c * p.heads + task.head) * buckets * LANES : nullptr, scratch);
    });
  });
  // Chunks are added in order; the position sums were kept reversed.
  at::Tensor position_sum = d_position.sum(0).narrow(1, 0, p.longest_table).flip(1), time_sum = d_time.sum(0).sum(2);
  return {d_q, d_k, d_v, position_sum, time_sum};
}

// --- tokens after a history, none of which sees another: kernels/cache.py

// One head's history: keys transposed, values, and the biases that a time of asking gives its columns and the token itself.
struct After {
  bool softmax;
  float scale;
  int64_t n, padded, width, ld;  // tokens of history; columns with the token's own, up to whole tiles
  std::vector<float> kt, v, position;
  std::vector<double> clock;
  const float* time;  // 32 entries, or null

  void load_history(const float* k, const float* v_, int64_t k_stride, int64_t v_stride, const float* table) {
    padded = up(n + 1, ROWS);
    ld = up(width, TILE_COLUMNS);
    kt.assign(width * padded, 0.0f);
    v.resize(padded * ld);
    for (int64_t j = 0; j < n; j++)
      for (int64_t c = 0; c < width; c++) kt[c * padded + j] = k[j * k_stride + c];
    pack(v_, n, width, v_stride, v.data(), ld, padded);
    position.assign(padded, 0.0f);
    if (table) std::reverse_copy(table, table + n + 1, position.begin());  // column j is n - j away
  }

  // Biases of the columns for a token of time `own` that is asked at `row`.
  void biases(int64_t row, int64_t own, double* columns, float* out) const {
    std::copy(position.begin(), position.end(), out);
    if (!time) return;
    std::copy(clock.begin(), clock.end(), columns);
    columns[n] = column_clock(own);
    for (int64_t j = 0; j < padded; j += LANES) store(out + j, load(out + j) + looked_up(time, buckets_of(row_clock(row), columns + j)));
  }
};

void after_rows(const After& x, int64_t count, const float* q, const float* k, const float* v, int64_t q_stride, int64_t k_stride,
                int64_t v_stride, const int64_t* row_time, const int64_t* own_time, float* out, int64_t out_stride, Scratch& scratch) {
  float* queries = sized(scratch.q, ROWS * x.ld);
  float* score = sized(scratch.score, ROWS * x.padded);
  float* rows = sized(scratch.out, ROWS * x.ld);
  float* bias = sized(scratch.reversed, x.padded);
  double* columns = sized(scratch.clock, x.padded);
  pack(q, count, x.width, q_stride, queries, x.ld, ROWS);
  product(ROWS, x.padded, x.width, queries, x.ld, 1, x.kt.data(), x.padded, score, x.padded, false);
  for (int64_t r = 0; r < count; r++) {
    if (r == 0 || (x.time && (row_time[r] != row_time[r - 1] || own_time[r] != own_time[r - 1])))
      x.biases(x.time ? row_time[r] : 0, x.time ? own_time[r] : 0, columns, bias);
    float* s = score + r * x.padded;
    float own = 0;
    for (int64_t c = 0; c < x.width; c++) own += q[r * q_stride + c] * k[r * k_stride + c];
    s[x.n] = own;
    (x.softmax ? softmax_row : silu_row)({bias, nullptr, 0, nullptr}, x.scale, s, x.n, x.padded);
  }
  product(ROWS, x.ld, x.n, score, x.padded, 1, x.v.data(), x.ld, rows, x.ld, false);
  for (int64_t r = 0; r < count; r++)
    for (int64_t c = 0; c < x.width; c++) out[r * out_stride + c] = rows[r * x.ld + c] + score[r * x.padded + x.n] * v[r * v_stride + c];
}

at::Tensor after(const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_, const at::Tensor& past_k_, const at::Tensor& past_v_, bool softmax,
                 double scale, const std::optional<at::Tensor>& position_, const std::optional<at::Tensor>& time_,
                 const std::optional<at::Tensor>& row_time_, const std::optional<at::Tensor>& own_time_, const std::optional<at::Tensor>& past_time_) {
  const at::Tensor q = readable(q_), k = readable(k_), v = readable(v_), past_k = readable(past_k_), past_v = readable(past_v_);
  for (const at::Tensor& x : {q, k, v, past_k, past_v})
    TORCH_CHECK(x.dim() == 3 && x.scalar_type() == at::kFloat && x.sizes().slice(1) == q.sizes().slice(1), "all must be float32 [tokens, H, K]");
  TORCH_CHECK(k.size(0) == q.size(0) && v.size(0) == q.size(0) && past_k.size(0) == past_v.size(0), "keys and values must be of the same tokens");
  const int64_t tokens = q.size(0), heads = q.size(1), width = q.size(2), n = past_k.size(0);
  at::Tensor position, time, row_time, own_time, past_time;
  if (position_) {
    position = position_->to(at::kFloat).contiguous();
    TORCH_CHECK(position.dim() == 2 && position.size(0) == heads && position.size(1) > n, "the position table must be [H, L], L above the history");
  }
  if (time_) {
    TORCH_CHECK(row_time_ && own_time_ && past_time_, "a time table needs the times of rows, tokens and history");
    time = time_->to(at::kFloat).contiguous();
    row_time = row_time_->to(at::kLong).contiguous(), own_time = own_time_->to(at::kLong).contiguous(), past_time = past_time_->to(at::kLong).contiguous();
    TORCH_CHECK(time.size(0) == heads && time.size(1) == UNKNOWN_BUCKET + 1, "the time table must be [H, 32]");
    TORCH_CHECK(row_time.numel() == tokens && own_time.numel() == tokens && past_time.numel() == n, "there must be a time for each token");
  }
  at::Tensor out = at::empty({tokens, heads, width}, q.options());
  const int64_t blocks = up(tokens, ROWS) / ROWS;
  After x{softmax, static_cast<float>(scale), n, 0, width, 0, {}, {}, {}, {}, nullptr};
  for (int64_t head = 0; head < heads; head++) {
    const int64_t h = head * width;
    x.load_history(past_k.data_ptr<float>() + h, past_v.data_ptr<float>() + h, past_k.stride(0), past_v.stride(0),
                   position_ ? position.data_ptr<float>() + head * position.size(1) : nullptr);
    if (time_) {
      x.time = time.data_ptr<float>() + head * time.size(1);
      x.clock.assign(x.padded, 0.0);
      for (int64_t j = 0; j < n; j++) x.clock[j] = column_clock(past_time.data_ptr<int64_t>()[j]);
    }
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      for (int64_t b = begin; b < end; b++) {
        const int64_t first = b * ROWS;
        after_rows(x, std::min(ROWS, tokens - first), q.data_ptr<float>() + first * q.stride(0) + h, k.data_ptr<float>() + first * k.stride(0) + h,
                   v.data_ptr<float>() + first * v.stride(0) + h, q.stride(0), k.stride(0), v.stride(0), time_ ? row_time.data_ptr<int64_t>() + first : nullptr,
                   time_ ? own_time.data_ptr<int64_t>() + first : nullptr, out.data_ptr<float>() + (first * heads) * width + h, heads * width, scratch);
      }
    });
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(largerec, m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor offsets, bool softmax, float scale, Tensor? position, Tensor? time, "
      "Tensor? row_time, Tensor? column_time) -> Tensor");
  m.def(
      "attention_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor offsets, bool softmax, float scale, Tensor? position, "
      "Tensor? time, Tensor? row_time, Tensor? column_time) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "attention_after(Tensor q, Tensor k, Tensor v, Tensor past_k, Tensor past_v, bool softmax, float scale, Tensor? position, "
      "Tensor? time, Tensor? row_time, Tensor? own_time, Tensor? past_time) -> Tensor");
}

TORCH_LIBRARY_IMPL(largerec, CPU, m) {
  m.impl("attention", forward);
  m.impl("attention_backward", backward);
  m.impl("attention_after", after);
}
