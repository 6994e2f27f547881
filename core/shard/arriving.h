#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <utility>

namespace flashmorph {

// A tensor that other ranks still work on. Whoever has begun it may do something else before asking for it; nobody can
// read it before it is here.
class Arriving {
 public:
  Arriving() = default;  // nothing is under way
  // `wait`: on a card the caller's stream alone waits; empty: the values are here.
  Arriving(at::Tensor values, std::function<void()> wait = {})
      : arrive_([values = std::move(values), wait = std::move(wait)] {
          if (wait) wait();
          return values;
        }) {}

  // What is made of it as soon as it is here.
  Arriving then(std::function<at::Tensor(const at::Tensor& values)> make) && {
    Arriving made;
    made.arrive_ = [arrive = std::move(arrive_), make = std::move(make)] { return make(arrive()); };
    return made;
  }

  explicit operator bool() const { return arrive_ != nullptr; }
  at::Tensor here() { return std::exchange(arrive_, nullptr)(); }  // once

 private:
  std::function<at::Tensor()> arrive_;
};

}  // namespace flashmorph
