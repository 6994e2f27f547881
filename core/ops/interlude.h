#pragma once

#include <functional>

namespace flashmorph {

// Something else that is to be done in the middle of what this thread computes: behind the first projections of several
// weights (project_each). The innermost one counts.
class Interlude {
 public:
  explicit Interlude(std::function<void()> work);
  ~Interlude();
  Interlude(const Interlude&) = delete;
  Interlude& operator=(const Interlude&) = delete;

  void play();  // unless it was; for where no such projections came

  static void reached();  // by those projections

 private:
  std::function<void()> work_;
  Interlude* outer_;
};

}  // namespace flashmorph
