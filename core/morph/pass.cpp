#include "core/morph/pass.h"

#include <c10/core/GradMode.h>

#include <algorithm>

#include "core/ops/put_off_gradients.h"
#include "core/ops/tensor_parallel.h"
#include "core/train/recompute.h"

namespace flashmorph {

Way Way::of(const MorphableModel& model, Routes routes, const Positions& positions, bool last_feed_forward) {
  TORCH_CHECK(std::ssize(routes) == model.layer_count(), "one route a layer: ", routes.size(), " for ",
              model.layer_count(), " layers");
  const auto [first, last] = model.own_layers();
  return {model, std::move(routes), positions, 2 * first, 2 * last - (model.has_head() && !last_feed_forward ? 1 : 0)};
}

Pass::Pass(Way way, at::Tensor x, See see_attention)
    : way_(std::move(way)),
      x_(std::move(x)),
      see_(std::move(see_attention)),
      records_(c10::GradMode::is_enabled()),
      next_(way_.first) {}

void Pass::finish(Pass* beside) {
  while (next_ < way_.last) {
    const int64_t here = next_;
    const auto is_beside = [&] { return beside != nullptr && beside->next_ == here && here < beside->way_.last; };
    compute([&] {
      if (is_beside()) beside->enter();
    });
    if (is_beside()) beside->compute([this] { enter(); });
  }
}

at::Tensor Pass::states() {
  if (!computed_) return x_;
  const c10::AutoGradMode mode(records_);
  come_to(way_.model.after({next_ - 1}, x_, computed_.here()));
  return x_;
}

// Between a sublayer's sum and the gather for the next one.
void Pass::enter() {
  if (read_) return;
  if (next_ == way_.last) return void(states());
  const c10::AutoGradMode mode(records_);
  if (!computed_) {
    read_ = way_.model.start_read({next_}, x_);
    return;
  }
  auto [states, read] = way_.model.onward_from({next_ - 1}, x_, computed_.here());
  come_to(states);
  read_ = std::move(read);
}

// `states`: behind the sublayer before `next_`.
void Pass::come_to(const at::Tensor& states) {
  x_ = see_ && Sublayer{next_ - 1}.is_attention() ? see_(x_, states) : states;
}

void Pass::compute(const std::function<void()>& meanwhile) {
  enter();
  const c10::AutoGradMode mode(records_);
  const Sublayer sublayer{next_++};
  const at::Tensor read = read_.here();
  const auto part = [&] {
    const int64_t layer = sublayer.layer();
    return sublayer.is_attention() ? way_.model.attention_part(layer, read, way_.routes[layer], way_.positions)
                                   : way_.model.feed_forward_part(layer, read);
  };
  computed_ = start_out_of_shards_beside(part, way_.model.shard(), meanwhile);
}

std::shared_ptr<Pass> teacher_pass(const MorphableModel& teacher, const at::Tensor& x, const Positions& positions,
                                   bool last_feed_forward, Pass::See see_attention) {
  const c10::NoGradGuard no_gradient;
  const Routes full(static_cast<size_t>(teacher.layer_count()), Route::full());
  return std::make_shared<Pass>(Way::of(teacher, full, positions, last_feed_forward), x, std::move(see_attention));
}

PassedThrough pass_through(const Way& way, at::Tensor x, const std::shared_ptr<Pass>& beside, bool recompute,
                           const std::function<RowsRead(const at::Tensor& h)>& look) {
  PutOffGradients* const later = PutOffGradients::collecting();
  const auto through = [way, beside, look, later](int64_t first, int64_t last) {
    return [=](const std::vector<at::Tensor>& inputs) {
      const PutOffGradients::Scope putting_off(later);  // when it runs again, too
      std::vector<at::Tensor> outputs;
      Way part = way;
      part.first = first;
      part.last = last;
      Pass pass(part, inputs[0], [&](const at::Tensor&, const at::Tensor& h) {
        if (!look) return h;
        const RowsRead read = look(h);
        outputs.push_back(read.rows);
        return read.x;
      });
      pass.finish(beside.get());
      outputs.push_back(pass.states());
      return outputs;
    };
  };
  PassedThrough passed{std::move(x), {}};
  const int64_t at_a_time = recompute ? 2 : way.last - way.first;
  for (int64_t first = way.first; first < way.last; first += at_a_time) {
    const int64_t last = std::min(first + at_a_time, way.last);
    std::vector<at::Tensor> outputs;
    if (recompute) {
      std::vector<at::Tensor> trained = way.model.weights_of(first / 2);
      trained.push_back(way.routes[first / 2].alpha);
      outputs = recomputed(through(first, last), {passed.states}, trained);
    } else {
      outputs = through(first, last)({passed.states});
    }
    passed.states = outputs.back();
    passed.looked.insert(passed.looked.end(), outputs.begin(), outputs.end() - 1);
  }
  return passed;
}

}  // namespace flashmorph
