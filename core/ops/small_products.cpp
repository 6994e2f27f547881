#include "core/ops/small_products.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/native/CPUBlas.h>

#include <vector>

#include "core/ops/work.h"

namespace flashmorph {
namespace {

typedef float Four __attribute__((vector_size(16)));

Four load(const float* x) {
  Four loaded;
  __builtin_memcpy(&loaded, x, sizeof(Four));
  return loaded;
}

void store(float* x, Four stored) { __builtin_memcpy(x, &stored, sizeof(Four)); }

void transpose_4x4(ConstMatrix x, Matrix turned) {
  const Four a = load(x.rows), b = load(x.rows + x.stride), c = load(x.rows + 2 * x.stride),
             d = load(x.rows + 3 * x.stride);
  const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7),
             cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  store(turned.rows, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5));
  store(turned.rows + turned.stride, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
  store(turned.rows + 2 * turned.stride, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
  store(turned.rows + 3 * turned.stride, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
}

// The matrices of a batch, each row by row: where it lies, or turned into a buffer when its columns lie so.
class RowByRow {
 public:
  explicit RowByRow(const at::Tensor& x_GNM) : x_(x_GNM), N_(x_GNM.size(1)), M_(x_GNM.size(2)) {
    const bool by_rows = x_.stride(2) == 1 && x_.stride(1) >= M_;
    turned_ = !by_rows && x_.stride(1) == 1 && x_.stride(2) >= N_;
    if (!by_rows && !turned_) x_ = x_.clone(at::MemoryFormat::Contiguous);
  }

  // The buffer is the caller's, for one matrix at a time.
  ConstMatrix matrix(int64_t g, std::vector<float>& buffer) const {
    const float* first = x_.const_data_ptr<float>() + g * x_.stride(0);
    if (!turned_) return {first, x_.stride(1)};
    buffer.resize(static_cast<size_t>(N_ * M_));
    transpose(M_, N_, {first, x_.stride(2)}, buffer.data());
    return {buffer.data(), M_};
  }

 private:
  at::Tensor x_;
  int64_t N_, M_;
  bool turned_;
};

bool takes(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kFloat && x.numel() > 0 && has_small_products();
}

void each_product(const at::Tensor& c_GNP, const at::Tensor& a_GNM, const at::Tensor& b_GMP, bool add) {
  const RowByRow a(a_GNM), b(b_GMP);
  const int64_t N = a_GNM.size(1), M = a_GNM.size(2), P = b_GMP.size(2);
  tell_work(2.0 * static_cast<double>(c_GNP.numel() * M));
  float* c = c_GNP.data_ptr<float>();
  at::parallel_for(0, c_GNP.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> a_buffer, b_buffer;
    for (int64_t g = begin; g < end; ++g)
      small_product(N, M, P, a.matrix(g, a_buffer), b.matrix(g, b_buffer), {c + g * c_GNP.stride(0), c_GNP.stride(1)},
                    add);
  });
}

}  // namespace

bool has_small_products() {
  static const bool has = at::get_cpu_capability() == "AVX512" && at::globalContext().hasMKLDNN();
  return has;
}

void small_product(int64_t N, int64_t M, int64_t P, ConstMatrix a, ConstMatrix b, Matrix c, bool add) {
  at::native::cpublas::brgemm(N, P, M, a.stride, b.stride, c.stride, add, a.rows, b.rows, c.rows);
}

void transpose(int64_t N, int64_t M, ConstMatrix x, float* turned_MN) {
  const int64_t whole_N = N / 4 * 4, whole_M = M / 4 * 4;
  for (int64_t i = 0; i < whole_N; i += 4)
    for (int64_t j = 0; j < whole_M; j += 4)
      transpose_4x4({x.rows + i * x.stride + j, x.stride}, {turned_MN + j * N + i, N});
  for (int64_t i = 0; i < N; ++i)
    for (int64_t j = i < whole_N ? whole_M : 0; j < M; ++j) turned_MN[j * N + i] = x.rows[i * x.stride + j];
}

at::Tensor batched_product(const at::Tensor& a_GNM, const at::Tensor& b_GMP) {
  if (!takes(a_GNM) || !takes(b_GMP)) return at::bmm(a_GNM, b_GMP);
  at::Tensor c_GNP = at::empty({a_GNM.size(0), a_GNM.size(1), b_GMP.size(2)}, a_GNM.options());
  each_product(c_GNP, a_GNM, b_GMP, /*add=*/false);
  return c_GNP;
}

void add_batched_product(const at::Tensor& sum_GNP, const at::Tensor& a_GNM, const at::Tensor& b_GMP) {
  if (takes(a_GNM) && takes(b_GMP) && sum_GNP.stride(2) == 1)
    each_product(sum_GNP, a_GNM, b_GMP, /*add=*/true);
  else
    sum_GNP.baddbmm_(a_GNM, b_GMP);
}

}  // namespace flashmorph
