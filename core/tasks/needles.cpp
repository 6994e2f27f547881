#include "core/tasks/needles.h"

#include <fmt/format.h>

#include <algorithm>

namespace flashmorph {
namespace {

constexpr int64_t kAnswerTokens = 128;

enum class Hay { noise, prose, needles };
enum class Form { word, number, uuid };

struct Shape {
  Hay hay = Hay::prose;
  Form name = Form::word;
  Form value = Form::number;
  int names = 1;
  int values = 1;   // of each name
  int queries = 1;  // names that are asked for
};

std::string uuid(KeyedRandom& random) {
  std::string text;
  for (const int digits : {8, 4, 4, 4, 12}) {
    if (!text.empty()) text += '-';
    for (int i = 0; i < digits; ++i) text += "0123456789abcdef"[random.below(16)];
  }
  text[14] = '4';  // version 4, variant 1
  text[19] = "89ab"[random.below(4)];
  return text;
}

std::string drawn_as(Form form, const TaskMaterial& material, KeyedRandom& random) {
  const std::vector<std::string>& words = material.words();
  switch (form) {
    case Form::word: {
      const std::string& first = words[random.below(words.size())];
      return first + "-" + words[random.below(words.size())];
    }
    case Form::number:
      return random_number(7, random);
    case Form::uuid:
      return uuid(random);
  }
  return "";
}

std::string joined(const std::vector<std::string>& texts) {
  std::string all;
  for (size_t i = 0; i < texts.size(); ++i) all += (i == 0 ? "" : i + 1 == texts.size() ? " and " : ", ") + texts[i];
  return all;
}

std::string sentence(const char* kind, const std::string& name, const std::string& value) {
  return fmt::format("The secret {} of {} is {}.\n", kind, name, value);
}

TaskSample needles(const Shape& shape, const Task& task, const TaskMaterial& material, int64_t length,
                   KeyedRandom& random) {
  const char* kind = shape.value == Form::uuid ? "code" : "number";
  TaskSample sample{.prompt = {}, .most = kAnswerTokens};
  struct Needle {
    double place;  // in [0, 1)
    std::string text;
  };
  std::vector<Needle> hidden;
  std::vector<std::string> asked;
  for (int n = 0; n < shape.names; ++n) {
    const std::string name = drawn_as(shape.name, material, random);
    const bool is_asked = n < shape.queries;
    if (is_asked) asked.push_back(name);
    for (int v = 0; v < shape.values; ++v) {
      const std::string value = drawn_as(shape.value, material, random);
      hidden.push_back({random.unit(), sentence(kind, name, value)});
      if (is_asked) sample.references.push_back(value);
    }
  }
  if (hidden.size() == 1 || (shape.queries == 1 && shape.values == 1)) sample.depth = hidden[0].place;
  std::ranges::stable_sort(hidden, {}, &Needle::place);

  const bool several = sample.references.size() > 1;
  const std::string before =
      fmt::format("The text below hides secret {}s. Remember them: you are asked about {} at the end.\n\n", kind,
                  several ? "some of them" : "one of them");
  const std::string after =
      fmt::format("\nQuestion: {} in the text above?\nAnswer: In the text above, the secret {} of {} {}",
                  several ? fmt::format("What are all the secret {}s of {}", kind, joined(asked))
                          : fmt::format("What is the secret {} of {}", kind, joined(asked)),
                  several ? fmt::format("{}s", kind) : kind, joined(asked), several ? "are" : "is");

  const uint64_t hay_key = random.next();
  const auto text = [&](int64_t units) {
    KeyedRandom hay{hay_key};  // the same beginning for every number of units
    const std::vector<std::string>& pieces = material.pieces();
    const size_t start = hay.below(pieces.size());
    std::string all = before;
    size_t next = 0;
    for (int64_t unit = 0; unit <= units; ++unit) {
      while (next < hidden.size() && (unit == units || hidden[next].place * static_cast<double>(units) < unit + 1.0))
        all += hidden[next++].text;
      if (unit == units) break;
      switch (shape.hay) {
        case Hay::noise:
          all += kNoise;
          break;
        case Hay::prose:
          all += pieces[(start + static_cast<size_t>(unit)) % pieces.size()];
          break;
        case Hay::needles: {
          const std::string name = drawn_as(shape.name, material, hay);
          all += sentence(kind, name, drawn_as(shape.value, material, hay));
          break;
        }
      }
    }
    return all + after;
  };
  sample.prompt = filled(material, task.name, length, sample.most, text);
  return sample;
}

}  // namespace

TaskSample needle_in_noise(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  return needles({.hay = Hay::noise}, task, material, length, random);
}
TaskSample needle_in_prose(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  return needles({}, task, material, length, random);
}
TaskSample uuid_in_prose(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  return needles({.value = Form::uuid}, task, material, length, random);
}
TaskSample keys_in_prose(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  return needles({.names = 4}, task, material, length, random);
}
TaskSample keys_only(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  return needles({.hay = Hay::needles}, task, material, length, random);
}
TaskSample uuid_keys_only(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  return needles({.hay = Hay::needles, .name = Form::uuid, .value = Form::uuid}, task, material, length, random);
}
TaskSample values_in_prose(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  return needles({.values = 4}, task, material, length, random);
}
TaskSample queries_in_prose(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  return needles({.names = 4, .queries = 4}, task, material, length, random);
}

}  // namespace flashmorph
