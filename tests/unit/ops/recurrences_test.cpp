// What holds for each of the linear-attention operators. Letters: B batch, T tokens, H heads, K key dim, V value
// dim.
#include "tests/unit/ops/recurrences.h"

#include <c10/core/GradMode.h>

namespace flashmorph::test {
namespace {

const std::vector<Operator>& operators() {
  static const std::vector<Operator> all = {lightning(), scalar_gated(), gated_linear(), gated_delta()};
  return all;
}

template <class Parameter>
std::string name_of(const testing::TestParamInfo<Parameter>& info) {
  return info.param.name;
}

class Recurrence : public testing::TestWithParam<Operator> {
 protected:
  const Operator& op() const { return GetParam(); }
  Results run(const Inputs& in, int64_t chunk, const Documents& documents = std::nullopt) const {
    return op().run(in, documents, chunk);
  }
};

INSTANTIATE_TEST_SUITE_P(Operators, Recurrence, testing::ValuesIn(operators()), name_of<Operator>);

// T = 1, C - 1, C, C + 1, 2C + 7, primes and 513, for several C.
TEST_P(Recurrence, ChunkedIsTheDefinitionForwardAndBackward) {
  struct Case {
    int64_t tokens, chunk;
  };
  for (const auto& [tokens, chunk] : {Case{1, 16},
                                      {15, 16},
                                      {16, 16},
                                      {17, 16},
                                      {39, 16},
                                      {513, 64},
                                      {3, 1},
                                      {39, 2},
                                      {63, 64},
                                      {65, 64},
                                      {135, 64},
                                      {263, 128},
                                      {101, 40},
                                      {97, 33},
                                      {5, 64}})
    for (const auto& [type, tolerance] : {std::pair(at::kDouble, 1e-10), {at::kFloat, op().float_tolerance}}) {
      SCOPED_TRACE(testing::Message() << tokens << " tokens in chunks of " << chunk << ", " << type);
      const Inputs exact = random_inputs(op(), tokens), fast = exact.to(type);
      const Results actual = run(fast, chunk);
      EXPECT_EQ(actual.first.scalar_type(), type);
      EXPECT_EQ(actual.second.scalar_type(), type);
      expect_equal_with_gradients(exact, op().define(exact), fast, actual, tolerance);
    }
}

TEST_P(Recurrence, TheChunkChangesNothing) {
  const Inputs base = random_inputs(op(), 131);
  for (const int64_t chunk : {1, 2, 16, 32, 64, 128}) {
    const Inputs whole = base.copy(), in = base.copy();
    expect_equal_with_gradients(whole, run(whole, 131), in, run(in, chunk), 1e-11);
  }
}

TEST_P(Recurrence, StatePassesFromPartToPartForwardAndBackward) {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{13, 28}, {1, 40}, {10, 10, 10, 11}}) {
    const Inputs whole = random_inputs(op(), 41), in = whole.copy();
    std::vector<at::Tensor> outputs;
    at::Tensor state = in["state"];
    int64_t first = 0;
    for (const int64_t length : lengths) {
      Inputs part = in.tokens(first, length);
      part.tensors["state"] = state;
      const auto [output, next] = run(part, 16);
      outputs.push_back(output);
      state = next;
      first += length;
    }
    expect_equal_with_gradients(whole, run(whole, 16), in, {at::cat(outputs, 1), state}, 1e-12);
  }
}

TEST_P(Recurrence, PackedDocumentsAreRunApart) {
  const std::vector<int64_t> offsets = {0, 1, 17, 19, 51, 90};  // shorter than a chunk, one, two and a ragged end
  for (const bool with_state : {true, false}) {
    const Inputs one_row = random_inputs(op(), 90, 8, 4, 1);
    const Inputs packed =
        one_row.with("state", at::randn({5, kHeads, 8, 4}, at::detail::createCPUGenerator(3), at::kDouble));
    const Inputs apart = packed.copy();
    std::vector<at::Tensor> outputs, states;
    for (size_t d = 0; d < 5; ++d) {
      Inputs own = apart.tokens(offsets[d], offsets[d + 1] - offsets[d]);
      own.tensors["state"] = with_state ? apart["state"].narrow(0, d, 1) : at::Tensor();
      const Results one = run(own, 16);
      outputs.push_back(one.first);
      states.push_back(one.second);
    }
    const Results actual = run(with_state ? packed : packed.without_state(), 16, at::tensor(offsets));
    expect_equal_with_gradients(apart, {at::cat(outputs, 1), at::cat(states)}, packed, actual, 1e-13);
  }
}

// What stands in one document cannot be felt in another, not even as a NaN.
TEST_P(Recurrence, ADocumentIsDeafToTheOthers) {
  const Inputs in = random_inputs(op(), 40, 8, 4, 1).without_state();
  const Inputs broken = in.over_tokens([](const at::Tensor& x) {
    const at::Tensor bad = x.detach().clone();
    bad.narrow(1, 9, 14).fill_(std::numeric_limits<double>::quiet_NaN());
    return bad.set_requires_grad(true);
  });
  const Documents documents = at::tensor(std::vector<int64_t>{0, 9, 23, 40});
  const Results sound = run(in, 16, documents), actual = run(broken, 16, documents);
  actual.first.sum().backward();
  sound.first.sum().backward();
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 9}, {23, 17}}) {
    EXPECT_TRUE(sound.first.narrow(1, first, count).equal(actual.first.narrow(1, first, count)));
    for (const char* name : {"q", "k", "v"})
      EXPECT_TRUE(in[name].grad().narrow(1, first, count).equal(broken[name].grad().narrow(1, first, count))) << name;
  }
  EXPECT_TRUE(actual.second[1].isnan().all().item<bool>());
}

TEST_P(Recurrence, DocumentsThatDoNotFitAreRefused) {
  const Inputs two_rows = random_inputs(op(), 5).without_state(), in = random_inputs(op(), 5, 8, 4, 1).without_state();
  const auto offsets = [](const std::vector<int64_t>& values) { return at::tensor(values); };
  EXPECT_NO_THROW(run(in, 16, offsets({0, 2, 5})));
  for (const auto& wrong :
       {offsets({0, 2, 4}), offsets({1, 5}), offsets({0, 3, 3, 5}), offsets({0, 4, 2, 5}), offsets({0})})
    EXPECT_THROW(run(in, 16, wrong), c10::Error) << wrong;
  EXPECT_THROW(run(in, 16, at::tensor({0.0, 5.0})), c10::Error);
  EXPECT_THROW(run(two_rows, 16, offsets({0, 5})), c10::Error);
}

TEST_P(Recurrence, NoInitialStateIsAZeroState) {
  const Inputs base = random_inputs(op(), 21);
  const Inputs zero = base.with("state", at::zeros_like(base["state"])), absent = base.copy();
  const Results expected = run(zero, 16), actual = run(absent.without_state(), 16);
  EXPECT_TRUE(expected.first.equal(actual.first));
  backward(expected);
  backward(actual);
  for (const char* name : {"q", "k", "v"}) EXPECT_TRUE(zero[name].grad().equal(absent[name].grad())) << name;
}

// Only one of the two outputs is used: the other's gradient is absent, not wrong.
TEST_P(Recurrence, EitherOutputAloneCarriesItsGradient) {
  for (const bool use_state : {false, true}) {
    const Inputs exact = random_inputs(op(), 21), in = exact.copy();
    const auto loss = [&](const Results& results) { return (use_state ? results.second : results.first).sin().sum(); };
    loss(op().define(exact)).backward();
    loss(run(in, 16)).backward();
    const auto found = in.gradients();
    for (const auto& [name, gradient] : exact.gradients())
      EXPECT_LT(relative_error(gradient, found.at(name)), 1e-12) << name;
  }
}

TEST_P(Recurrence, NothingLooksAhead) {
  const Inputs in = random_inputs(op(), 40);
  const Inputs changed = in.over_tokens([](const at::Tensor& x) {
    const at::Tensor other = x.detach().clone();
    other.narrow(1, 20, 20).fill_(-0.3);
    return other;
  });
  const at::Tensor before = run(in, 16).first, after = run(changed, 16).first;
  EXPECT_TRUE(before.narrow(1, 0, 20).equal(after.narrow(1, 0, 20)));
  EXPECT_FALSE(before.narrow(1, 20, 1).equal(after.narrow(1, 20, 1)));

  before.narrow(1, 0, 20).sum().backward();
  for (const auto& [name, gradient] : in.gradients()) {
    if (name == "state") continue;
    EXPECT_EQ(gradient.narrow(1, 20, 20).abs().max().item<double>(), 0.0) << name;
    EXPECT_GT(gradient.narrow(1, 0, 20).abs().max().item<double>(), 0.0) << name;
  }
}

TEST_P(Recurrence, LinearInQueriesAndInValuesWithTheState) {
  const c10::NoGradGuard no_gradient;
  const Inputs a = random_inputs(op(), 37);
  Inputs other = a, sum = a;
  other.tensors["v"] = a["v"].flip(1);
  other.tensors["state"] = a["state"].flip(0);
  for (const char* name : {"v", "state"}) sum.tensors[name] = a[name] + 2 * other[name];
  const Results ra = run(a, 16), rb = run(other, 16), rs = run(sum, 16);
  EXPECT_LT(relative_error(ra.first + 2 * rb.first, rs.first), 1e-13);
  EXPECT_LT(relative_error(ra.second + 2 * rb.second, rs.second), 1e-13);
  Inputs scaled = a;
  scaled.tensors["q"] = a["q"] * -3.0;
  EXPECT_LT(relative_error(ra.first * -3.0, run(scaled, 16).first), 1e-13);
}

TEST_P(Recurrence, CentralDifferences) {
  constexpr double kStep = 1e-5;
  for (const auto& [tokens, dim] : {std::pair<int64_t, int64_t>{1, 4}, {3, 4}, {11, 8}, {17, 4}}) {
    const Inputs in = random_inputs(op(), tokens, dim, 3);
    const auto loss = [&] {
      const auto [output, state] = run(in, 4);
      return output.square().sum() + state.sin().sum();
    };
    loss().backward();
    for (const auto& [name, gradient] : in.gradients()) {
      const at::Tensor values = in[name].detach().view(-1), expected = gradient.flatten();
      for (int64_t place = 0; place < values.numel(); place += 1 + values.numel() / 40) {
        const double here = values[place].item<double>();
        values[place].fill_(here + kStep);
        const double above = loss().item<double>();
        values[place].fill_(here - kStep);
        const double below = loss().item<double>();
        values[place].fill_(here);
        EXPECT_NEAR(expected[place].item<double>(), (above - below) / (2 * kStep), 1e-6) << name << " " << place;
      }
    }
  }
}

TEST_P(Recurrence, TwoRunsAreEqualBitForBit) {
  const Inputs in = random_inputs(op(), 133), again = in.copy();
  const Results first = run(in, 64), second = run(again, 64);
  EXPECT_TRUE(first.first.equal(second.first) && first.second.equal(second.second));
  backward(first);
  backward(second);
  const auto found = again.gradients();
  for (const auto& [name, gradient] : in.gradients()) EXPECT_TRUE(gradient.equal(found.at(name))) << name;
}

TEST_P(Recurrence, AHeadAndARowAreTheirOwn) {
  const c10::NoGradGuard no_gradient;
  const Inputs in = random_inputs(op(), 33);
  const Results whole = run(in, 16);
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < kHeads; ++h) {
      Inputs one = in;
      for (auto& [name, x] : one.tensors) {
        if (!in.is_trained(name))
          x = x.narrow(0, h, 1);
        else
          x = x.narrow(0, b, 1).narrow(name == "state" ? 1 : 2, h, 1);
      }
      const Results alone = run(one, 16);
      EXPECT_LT(relative_error(whole.first.narrow(0, b, 1).narrow(2, h, 1), alone.first), 1e-14) << b << " " << h;
      EXPECT_LT(relative_error(whole.second.narrow(0, b, 1).narrow(1, h, 1), alone.second), 1e-14) << b << " " << h;
    }
}

TEST_P(Recurrence, AnyStridesGiveTheSameNumbers) {
  const Inputs in = random_inputs(op(), 35);
  const Inputs strided =
      in.over_tokens([](const at::Tensor& x) { return x.transpose(1, 2).contiguous().transpose(1, 2); });
  EXPECT_TRUE(run(in, 16).first.equal(run(strided, 16).first));
}

TEST_P(Recurrence, ShortDtypesAreComputedInFloat32) {
  const Inputs in = random_inputs(op(), 70);
  Inputs half = in.to(at::kBFloat16), full = half.to(at::kFloat);
  for (const char* name : {"state", "g", "beta"})
    if (half.tensors.count(name) > 0)
      half.tensors[name] = full[name].detach().clone().set_requires_grad(full.is_trained(name));
  const Results actual = run(half, 16), expected = run(full, 16);
  EXPECT_EQ(actual.first.scalar_type(), at::kBFloat16);
  EXPECT_EQ(actual.second.scalar_type(), at::kFloat);
  EXPECT_TRUE(expected.second.equal(actual.second));
  EXPECT_TRUE(expected.first.to(at::kBFloat16).equal(actual.first));
  backward(actual);
  EXPECT_EQ(half["q"].grad().scalar_type(), at::kBFloat16);
  EXPECT_EQ(half["state"].grad().scalar_type(), at::kFloat);
}

TEST_P(Recurrence, ShapesThatDoNotFitAreRefused) {
  const Inputs in = random_inputs(op(), 5);
  const auto shorter = [&](const char* name, int64_t dim) { return in.with(name, in[name].narrow(dim, 0, 1)); };
  for (const char* name : {"q", "k", "v"}) EXPECT_THROW(run(shorter(name, 1), 16), c10::Error) << name;
  EXPECT_THROW(run(shorter("g", in["g"].dim() - 1), 16), c10::Error);
  EXPECT_THROW(run(shorter("state", 1), 16), c10::Error);
  Inputs mixed = in;
  mixed.tensors["v"] = in["v"].to(at::kFloat);
  EXPECT_THROW(run(mixed, 16), c10::Error);
  EXPECT_THROW(run(in, 0), c10::Error);
}

}  // namespace
}  // namespace flashmorph::test
