#pragma once

#include <ATen/record_function.h>

#include <functional>

namespace flashmorph {

// The floating-point operations of a call, whose inputs were asked for, if it is a matrix product, a triangular solve
// or attention; 0 if it is not. 2 for a multiply-add; causal attention reads half of the pairs.
double flop_of_call(const at::RecordFunction& call);

// Those that this thread starts while it lives. Elementwise work is not counted. One at a time in a thread.
class WorkCounter {
 public:
  WorkCounter();
  ~WorkCounter();
  WorkCounter(const WorkCounter&) = delete;
  WorkCounter& operator=(const WorkCounter&) = delete;

  double flop() const { return flop_; }

 private:
  static std::unique_ptr<at::ObserverContext> started(const at::RecordFunction& call);

  double flop_ = 0.0;
  at::CallbackHandle handle_;
};

// Calls `entered` and `left` around every stretch of this thread that a program marks with RECORD_USER_SCOPE(name).
class ScopeWatcher {
 public:
  ScopeWatcher(const char* name, std::function<void()> entered, std::function<void()> left);
  ~ScopeWatcher();
  ScopeWatcher(const ScopeWatcher&) = delete;
  ScopeWatcher& operator=(const ScopeWatcher&) = delete;

 private:
  static std::unique_ptr<at::ObserverContext> started(const at::RecordFunction& call);
  static void ended(const at::RecordFunction& call, at::ObserverContext* context);

  const char* name_;
  std::function<void()> entered_, left_;
  at::CallbackHandle handle_;
};

}  // namespace flashmorph
