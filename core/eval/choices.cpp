#include "core/eval/choices.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/ops/vocabulary_loss.h"

namespace flashmorph {
namespace {

using nlohmann::json;

const std::string& text_of(const json& value, const std::string& where, const std::string& key) {
  if (!value.is_string() || value.get_ref<const std::string&>().empty())
    throw BadInput(where, fmt::format("{} is {}, expected a text", key, value.dump().substr(0, 80)));
  return value.get_ref<const std::string&>();
}

ChoiceItem item_of(const json& line, const std::string& where) {
  if (!line.is_object()) throw BadInput(where, "is no JSON object with context, choices and answer");
  ChoiceItem item{.context = text_of(part_of(line, "context"), where, "context"), .choices = {}};
  const json &choices = part_of(line, "choices"), &answer = part_of(line, "answer");
  if (!choices.is_array() || choices.size() < 2)
    throw BadInput(where,
                   fmt::format("choices is {}, expected a list of two texts or more", choices.dump().substr(0, 80)));
  for (const json& choice : choices) item.choices.push_back(text_of(choice, where, "a choice"));
  const auto named = std::ranges::find(item.choices, answer.is_string() ? answer.get<std::string>() : "");
  item.answer = answer.is_number_integer() ? answer.get<int64_t>() : named - item.choices.begin();
  if (item.answer < 0 || item.answer >= static_cast<int64_t>(item.choices.size()))
    throw BadInput(where, fmt::format("answer is {}, expected one of the choices, or its index from 0 to {}",
                                      answer.dump().substr(0, 80), item.choices.size() - 1));
  return item;
}

}  // namespace

std::vector<ChoiceItem> read_choices(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in || std::filesystem::is_directory(file)) throw BadInput(file.string(), "cannot be read");
  std::vector<ChoiceItem> items;
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}: line {}", file.string(), number);
    items.push_back(item_of(parse_json(line, where, RepeatedKeys::last_counts), where));
  }
  if (items.empty())
    throw BadInput(file.string(), "has no questions, expected JSON lines with context, choices, answer");
  return items;
}

// The choices of a question are documents packed in one row.
std::vector<double> choice_likelihoods(const MorphableModel& model, const Routes& routes, const Tokenizer& tokenizer,
                                       const ChoiceItem& item) {
  const c10::NoGradGuard no_gradient;
  const auto context = static_cast<int64_t>(tokenizer.encode(item.context).size());
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets = {0};
  for (const std::string& choice : item.choices) {
    const std::vector<int32_t> whole = tokenizer.encode(item.context + choice);
    tokens.insert(tokens.end(), whole.begin(), whole.end());
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  const at::Tensor all_T = at::tensor(tokens, at::kInt).to(at::kLong), documents = at::tensor(offsets, at::kLong);
  const at::Tensor hidden = model.forward(all_T.unsqueeze(0), routes, model.positions(0, all_T.size(0), documents));
  std::vector<double> likelihoods(item.choices.size());
  if (!model.has_head()) return likelihoods;
  for (size_t c = 0; c < item.choices.size(); ++c) {
    const int64_t first = offsets[c] + std::max<int64_t>(context, 1), count = offsets[c + 1] - first;
    if (count < 1) continue;
    likelihoods[c] = -cross_entropy(hidden[0].narrow(0, first - 1, count), model.head(), all_T.narrow(0, first, count),
                                    model.shard())
                          .item<double>();
  }
  return likelihoods;
}

ChoiceVerdict verdict(const ChoiceItem& item, const std::vector<double>& likelihoods) {
  std::vector<double> by_length;
  for (size_t c = 0; c < likelihoods.size(); ++c)
    by_length.push_back(likelihoods[c] / static_cast<double>(item.choices[c].size()));
  const auto picks_answer = [&](const std::vector<double>& values) {
    return std::ranges::max_element(values) - values.begin() == item.answer;
  };
  return {picks_answer(likelihoods), picks_answer(by_length)};
}

}  // namespace flashmorph
