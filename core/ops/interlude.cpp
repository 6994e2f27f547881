#include "core/ops/interlude.h"

#include <utility>

namespace flashmorph {
namespace {

thread_local Interlude* innermost = nullptr;

}  // namespace

Interlude::Interlude(std::function<void()> work) : work_(std::move(work)), outer_(std::exchange(innermost, this)) {}

Interlude::~Interlude() { innermost = outer_; }

void Interlude::play() {
  if (work_) std::exchange(work_, nullptr)();
}

void Interlude::reached() {
  if (innermost != nullptr) innermost->play();
}

}  // namespace flashmorph
