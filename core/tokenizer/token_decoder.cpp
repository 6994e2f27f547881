#include "core/tokenizer/token_decoder.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/tokenizer/byte_alphabet.h"
#include "core/tokenizer/normalizer.h"
#include "core/tokenizer/utf8.h"

namespace flashmorph {
namespace {

using nlohmann::json;
using Tokens = std::vector<std::string>;

std::string joined(const Tokens& tokens) {
  std::string text;
  for (const std::string& token : tokens) text += token;
  return text;
}

std::optional<char> fallback_byte(const std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const std::string digits = token.substr(3, 2);
  if (digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) return std::nullopt;
  return static_cast<char>(std::stoi(digits, nullptr, 16));
}

// Runs of byte tokens become their text, or one U+FFFD a byte when they are not UTF-8.
Tokens with_bytes_read(const Tokens& tokens) {
  Tokens read;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (valid_utf8(bytes) == bytes)
      read.push_back(bytes);
    else
      read.insert(read.end(), bytes.size(), std::string(kReplacementCharacter));
    bytes.clear();
  };
  for (const std::string& token : tokens) {
    if (const auto byte = fallback_byte(token)) {
      bytes += *byte;
      continue;
    }
    flush();
    read.push_back(token);
  }
  flush();
  return read;
}

std::string stripped(std::string token, const std::string& character, size_t start, size_t stop) {
  for (size_t i = 0; i < start && token.starts_with(character); ++i) token.erase(0, character.size());
  for (size_t i = 0; i < stop && token.ends_with(character); ++i) token.resize(token.size() - character.size());
  return token;
}

}  // namespace

TokenDecoder::TokenDecoder(const json& description, const std::string& where) {
  if (!description.is_null()) add(description, where);
}

void TokenDecoder::add(const json& description, const std::string& where) {
  const auto text = [&](const json& value) {
    if (!value.is_string() || value == "") unsupported(where, description);
    return value.get<std::string>();
  };
  const auto count = [&](const char* key) {
    if (!part_of(description, key).is_number_unsigned()) unsupported(where, description);
    return part_of(description, key).get<size_t>();
  };
  const json& type = part_of(description, "type");
  if (type == "Sequence" && part_of(description, "decoders").is_array()) {
    for (const json& step : part_of(description, "decoders")) add(step, where);
  } else if (type == "ByteLevel") {
    steps_.push_back({Kind::kByteLevel, "", ""});
  } else if (type == "ByteFallback") {
    steps_.push_back({Kind::kByteFallback, "", ""});
  } else if (type == "Fuse") {
    steps_.push_back({Kind::kFuse, "", ""});
  } else if (type == "Metaspace") {
    const bool keeps_prefix = part_of(description, "prepend_scheme") == "never";
    steps_.push_back({Kind::kMetaspace, text(part_of(description, "replacement")), " ", keeps_prefix ? 0u : 1u});
  } else if (type == "Replace" && part_of(description, "content").is_string()) {
    steps_.push_back({Kind::kReplace, text(part_of(part_of(description, "pattern"), "String")),
                      part_of(description, "content").get<std::string>()});
  } else if (type == "Strip") {
    steps_.push_back({Kind::kStrip, text(part_of(description, "content")), "", count("start"), count("stop")});
  } else {
    unsupported(where, description);
  }
}

std::string TokenDecoder::text_of(Tokens tokens) const {
  if (steps_.empty()) {
    for (size_t i = 1; i < tokens.size(); ++i) tokens[i].insert(0, " ");
    return joined(tokens);
  }
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kByteLevel:
        for (std::string& token : tokens) token = bytes_of_alphabet(token).value_or(token);
        tokens = {valid_utf8(joined(tokens))};
        break;
      case Kind::kMetaspace:
        for (size_t i = 0; i < tokens.size(); ++i)
          tokens[i] = replaced(tokens[i], step.from, i == 0 && step.start > 0 ? "" : step.to);
        break;
      case Kind::kByteFallback:
        tokens = with_bytes_read(tokens);
        break;
      case Kind::kFuse:
        tokens = {joined(tokens)};
        break;
      case Kind::kReplace:
        for (std::string& token : tokens) token = replaced(token, step.from, step.to);
        break;
      case Kind::kStrip:
        for (std::string& token : tokens) token = stripped(std::move(token), step.from, step.start, step.stop);
        break;
    }
  }
  return joined(tokens);
}

}  // namespace flashmorph
