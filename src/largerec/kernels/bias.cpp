// Attention without queries and keys over packed tokens on a CPU: the fast twin of position_attention and time_attention in
// kernels/reference.py. The weight of a pair of tokens comes from their distance or from the time between them alone.
//
// As in attention.cpp no N x N matrix is held. Weights by distance are not even written out: a block of them is a window into the
// reversed table, whose rows lie one step apart. Weights by time are made for ROWS rows at a time.
#include "rows.h"

namespace {

enum Kind : int64_t { POSITION, BUCKET, POWER };

struct Problem {
  Kind kind;
  int64_t heads, width, table_width;
  const int64_t* offsets;
  const float* table;  // [H, table_width]
  const int64_t* row_time;
  const int64_t* column_time;
  int64_t v_stride;  // from token to token
};

// Scratch of one chunk, grown as needed and reused from task to task.
struct Scratch {
  std::vector<float> v, vt, d_out, weight, d_weight, out, d_v, reversed;
  std::vector<double> clock;
};

// log of x >= 1: the exponent, and 2 atanh((m - 1) / (m + 1)) of the mantissa in [sqrt(1/2), sqrt(2)), by its series.
inline V log(V x) {
  const VI bits = reinterpret_cast<VI&>(x);
  VI exponent = (bits >> 23) - 127;
  VI mantissa_bits = (bits & 0x7fffff) | 0x3f800000;
  V mantissa = reinterpret_cast<V&>(mantissa_bits);
  const VI large = mantissa > all(1.41421356f);
  mantissa = large ? mantissa * 0.5f : mantissa;
  exponent -= large;  // true is -1
  const V z = (mantissa - 1.0f) / (mantissa + 1.0f), square = z * z;
  const V series = ((((square * (1.0f / 9) + 1.0f / 7) * square + 1.0f / 5) * square + 1.0f / 3) * square + 1.0f) * z;
  return __builtin_convertvector(exponent, V) * 0.693147181f + series * 2.0f;
}

// Rows of weights w = f(seconds between row and column) and the sums of their tables' gradients.
struct RowTime {
  Kind kind;
  const float* table;  // of the head
  double row;
  const double* columns;

  // log(1 + seconds) of a vector of columns, and which times are known (all bits set).
  V log_seconds(int64_t j, VI& known) const {
    V seconds;
    for (int half = 0; half < 2; half++) {
      VD elapsed = row - *reinterpret_cast<const VD*>(columns + j + HALF * half);
      const VL seen = elapsed < NO_TIME / 2;
      elapsed = elapsed > 0.0 ? elapsed : VD{};
      elapsed = seen ? elapsed * 0.001 : VD{};
      for (int l = 0; l < HALF; l++) {
        seconds[HALF * half + l] = static_cast<float>(elapsed[l]);
        known[HALF * half + l] = static_cast<int32_t>(seen[l]);
      }
    }
    return log(seconds + 1.0f);
  }

  void weights(float* w, int64_t i, int64_t padded) const {
    for (int64_t j = 0; j <= i; j += LANES) {
      if (kind == BUCKET) {
        store(w + j, looked_up(table, buckets_of(row, columns + j)));
      } else {
        VI known;
        const V x = exp(log_seconds(j, known) * -table[1]) * table[0];
        store(w + j, known ? x : V{});
      }
    }
    clear_behind(w, i, padded);
  }

  // From gradients d of the weights: weights into w, and the gradients of the table into its sums, [table_width, LANES].
  void gradient(float* w, float* d, float* sums, bool rising, int64_t i, int64_t padded) const {
    clear_behind(d, i, padded);
    for (int64_t j = 0; j <= i; j += LANES) {
      if (kind == BUCKET) {
        const VI bucket = buckets_of(row, columns + j);
        store(w + j, looked_up(table, bucket));
        add_by_bucket(load(d + j), bucket, rising, sums);
      } else {
        VI known;
        const V logs = log_seconds(j, known);
        const V power = exp(logs * -table[1]), x = known ? power : V{}, g = load(d + j) * x;
        store(w + j, x * table[0]);
        store(sums, load(sums) + g);
        store(sums + LANES, load(sums + LANES) - g * logs * table[0]);
      }
    }
    clear_behind(w, i, padded);
  }
};

// What forward and backward share of one task: packed values, and the reversed table or the clock.
template <typename T>
struct Prepared {
  int64_t n, first, n_padded, ld;
  float* v;
  const float* window = nullptr;  // by distance: the weights of row i are at window - i; beyond the table lie zeros
  double* clock = nullptr;
  bool rising = false;

  Prepared(const Problem& p, const Task& task, const T* v_all, Scratch& scratch) {
    first = p.offsets[task.user];
    n = p.offsets[task.user + 1] - first;
    n_padded = up(n, ROWS);
    ld = up(p.width, TILE_COLUMNS);
    v = sized(scratch.v, n_padded * ld);
    pack(v_all + first * p.v_stride + task.head * p.width, n, p.width, p.v_stride, v, ld, n_padded);
    const float* table = p.table + task.head * p.table_width;
    if (p.kind == POSITION) {
      float* reversed = sized(scratch.reversed, p.table_width + 2 * ROWS);
      std::fill(reversed, reversed + ROWS, 0.0f);
      std::reverse_copy(table, table + p.table_width, reversed + ROWS);
      std::fill(reversed + ROWS + p.table_width, reversed + 2 * ROWS + p.table_width, 0.0f);
      window = reversed + ROWS + p.table_width - 1;
      return;
    }
    clock = sized(scratch.clock, n_padded);
    for (int64_t j = 0; j < n; j++) clock[j] = column_clock(p.column_time[first + j]);
    std::fill(clock + n, clock + n_padded, clock[n - 1]);  // so that the buckets of a vector still fall
    rising = std::is_sorted(clock, clock + n);
  }

  RowTime row(const Problem& p, const Task& task, int64_t i) const {
    return {p.kind, p.table + task.head * p.table_width, row_clock(p.row_time[first + i]), clock};
  }
};

template <typename T>
void forward_task(const Problem& p, const Task& task, const T* v, T* out, Scratch& scratch) {
  if (p.offsets[task.user + 1] == p.offsets[task.user]) return;
  const Prepared<T> x(p, task, v, scratch);
  float* weight = sized(scratch.weight, ROWS * x.n_padded);
  float* rows = sized(scratch.out, ROWS * x.ld);
  for (int64_t i0 = 0; i0 < x.n; i0 += ROWS) {
    const int64_t columns = i0 + ROWS, count = std::min(ROWS, x.n - i0);
    if (x.window) {
      product(ROWS, x.ld, std::min(columns, x.n), x.window - i0, -1, 1, x.v, x.ld, rows, x.ld, false);
    } else {
      for (int64_t r = 0; r < ROWS; r++) {
        const int64_t i = std::min(i0 + r, x.n - 1);  // rows behind the history repeat its last one and are not kept
        x.row(p, task, i).weights(weight + r * columns, i, columns);
      }
      product(ROWS, x.ld, std::min(columns, x.n), weight, columns, 1, x.v, x.ld, rows, x.ld, false);
    }
    unpack(rows, x.ld, count, p.width, p.heads * p.width, out + (x.first + i0) * p.heads * p.width + task.head * p.width);
  }
}

// d_table: sums of the task's chunk and head; by distance reversed, else one for each lane.
template <typename T>
void backward_task(const Problem& p, const Task& task, const T* d_out_all, const T* v, T* d_v, float* d_table, Scratch& scratch) {
  if (p.offsets[task.user + 1] == p.offsets[task.user]) return;
  const Prepared<T> x(p, task, v, scratch);
  const int64_t stride = p.heads * p.width, at = x.first * stride + task.head * p.width;
  float* vt = sized(scratch.vt, p.width * x.n_padded);
  float* d_out = sized(scratch.d_out, x.n_padded * x.ld);
  float* weight = sized(scratch.weight, ROWS * x.n_padded);
  float* d_weight = sized(scratch.d_weight, ROWS * x.n_padded);
  float* dv = sized(scratch.d_v, x.n_padded * x.ld);
  transpose(x.v, x.ld, p.width, x.n_padded, vt);
  pack(d_out_all + at, x.n, p.width, stride, d_out, x.ld, x.n_padded);
  std::fill(dv, dv + x.n_padded * x.ld, 0.0f);
  for (int64_t i0 = 0; i0 < x.n; i0 += ROWS) {
    const int64_t columns = i0 + ROWS, count = std::min(ROWS, x.n - i0);
    product(ROWS, columns, p.width, d_out + i0 * x.ld, x.ld, 1, vt, x.n_padded, d_weight, columns, false);
    for (int64_t r = 0; r < count; r++) {
      const int64_t i = i0 + r;
      float* d = d_weight + r * columns;
      if (x.window) {
        clear_behind(d, i, columns);
        float* sums = d_table + p.table_width - 1 - i;  // reversed like the table: column j of row i is distance i - j
        for (int64_t j = 0; j <= i; j += LANES) store(sums + j, load(sums + j) + load(d + j));
      } else {
        x.row(p, task, i).gradient(weight + r * columns, d, d_table, x.rising, i, columns);
      }
    }
    if (x.window) {
      product(columns, x.ld, ROWS, x.window - i0, 1, -1, d_out + i0 * x.ld, x.ld, dv, x.ld, true);
    } else {
      std::fill(weight + count * columns, weight + ROWS * columns, 0.0f);
      product(columns, x.ld, ROWS, weight, 1, columns, d_out + i0 * x.ld, x.ld, dv, x.ld, true);
    }
  }
  unpack(dv, x.ld, x.n, p.width, stride, d_v + at);
}

struct Held {  // tensors that a Problem points into
  at::Tensor offsets, table, row_time, column_time;
};

Problem problem_of(const at::Tensor& v, const at::Tensor& offsets, const at::Tensor& table, int64_t kind,
                   const std::optional<at::Tensor>& row_time, const std::optional<at::Tensor>& column_time, Held& held) {
  TORCH_CHECK(v.dim() == 3, "v must be [T, H, K]");
  TORCH_CHECK(table.dim() == 2 && table.size(0) == v.size(1), "the table must have a row for each head");
  held = {offsets.to(at::kLong).contiguous(), table.to(at::kFloat).contiguous(), {}, {}};
  Problem p{static_cast<Kind>(kind), v.size(1), v.size(2), table.size(1), held.offsets.data_ptr<int64_t>(), held.table.data_ptr<float>(),
            nullptr, nullptr, v.stride(0)};
  check_offsets(held.offsets, v.size(0));
  if (p.kind == POSITION) {
    for (int64_t b = 0; b + 1 < held.offsets.numel(); b++)
      TORCH_CHECK(p.offsets[b + 1] - p.offsets[b] <= p.table_width, "a history is longer than the position table");
    return p;
  }
  TORCH_CHECK(p.kind == BUCKET || p.kind == POWER, "there is no such kind of weights");
  TORCH_CHECK(p.table_width == (p.kind == BUCKET ? UNKNOWN_BUCKET + 1 : 2), "the time table must be [H, 32], or [H, 2] of a power law");
  TORCH_CHECK(row_time && column_time, "a time table needs row and column times");
  TORCH_CHECK(row_time->numel() == v.size(0) && column_time->numel() == v.size(0), "times must be [T]");
  TORCH_CHECK(row_time->scalar_type() == at::kLong && column_time->scalar_type() == at::kLong, "times must be int64");
  held.row_time = row_time->contiguous();
  held.column_time = column_time->contiguous();
  p.row_time = held.row_time.data_ptr<int64_t>();
  p.column_time = held.column_time.data_ptr<int64_t>();
  return p;
}

at::Tensor forward(const at::Tensor& v_, const at::Tensor& offsets, const at::Tensor& table, int64_t kind,
                   const std::optional<at::Tensor>& row_time, const std::optional<at::Tensor>& column_time) {
  const at::Tensor v = readable(v_);
  Held held;
  const Problem p = problem_of(v, offsets, table, kind, row_time, column_time, held);
  at::Tensor out = at::empty(v.sizes(), v.options());
  const auto chunks = chunks_of(p.offsets, held.offsets.numel() - 1, p.heads);
  LARGEREC_FLOAT_TYPES(v.scalar_type(), "largerec::bias_attention", [&] {
    at::parallel_for(0, chunks.size(), 1, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      for (int64_t c = begin; c < end; c++)
        for (const Task& task : chunks[c]) forward_task(p, task, v.data_ptr<scalar_t>(), out.data_ptr<scalar_t>(), scratch);
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& d_out_, const at::Tensor& v_, const at::Tensor& offsets,
                                            const at::Tensor& table, int64_t kind, const std::optional<at::Tensor>& row_time,
                                            const std::optional<at::Tensor>& column_time) {
  const at::Tensor v = readable(v_), d_out = d_out_.to(v_.scalar_type()).contiguous();
  Held held;
  const Problem p = problem_of(v, offsets, table, kind, row_time, column_time, held);
  at::Tensor d_v = at::empty(v.sizes(), v.options());
  const auto chunks = chunks_of(p.offsets, held.offsets.numel() - 1, p.heads);
  const int64_t n_chunks = static_cast<int64_t>(chunks.size());
  const int64_t sums = p.kind == POSITION ? p.table_width + LANES : p.table_width * LANES;  // whole vectors are added
  at::Tensor d_table = at::zeros({n_chunks, p.heads, sums}, at::kFloat);
  LARGEREC_FLOAT_TYPES(v.scalar_type(), "largerec::bias_attention_backward", [&] {
    at::parallel_for(0, n_chunks, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      for (int64_t c = begin; c < end; c++)
        for (const Task& task : chunks[c])
          backward_task(p, task, d_out.data_ptr<scalar_t>(), v.data_ptr<scalar_t>(), d_v.data_ptr<scalar_t>(),
                        d_table.data_ptr<float>() + (c * p.heads + task.head) * sums, scratch);
    });
  });
  const at::Tensor sum = d_table.sum(0);  // chunks are added in order
  return {d_v, p.kind == POSITION ? sum.narrow(1, 0, p.table_width).flip(1) : sum.view({p.heads, p.table_width, LANES}).sum(2)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(largerec, m) {
  m.def("bias_attention(Tensor v, Tensor offsets, Tensor table, int kind, Tensor? row_time, Tensor? column_time) -> Tensor");
  m.def(
      "bias_attention_backward(Tensor d_out, Tensor v, Tensor offsets, Tensor table, int kind, Tensor? row_time, Tensor? column_time) "
      "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(largerec, CPU, m) {
  m.impl("bias_attention", forward);
  m.impl("bias_attention_backward", backward);
}
