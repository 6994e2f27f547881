#include "core/tokenizer/tokenizer_file.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "core/base/bad_input.h"
#include "core/base/sha256.h"
#include "core/io/json_input.h"

namespace flashmorph {
namespace {

using nlohmann::json;

class Reader {
 public:
  Reader(const std::string& content, const std::string& name) : name_(name), root_(parse_json(content, name)) {
    file_.sha256 = sha256_of_bytes(content.data(), content.size());
  }

  TokenizerFile read() {
    check_model();
    file_.normalizer = Normalizer(part_of(root_, "normalizer"), name_ + ": normalizer");
    file_.pre_tokenizer = PreTokenizer(part_of(root_, "pre_tokenizer"), name_ + ": pre_tokenizer");
    file_.decoder = TokenDecoder(part_of(root_, "decoder"), name_ + ": decoder");
    if (!file_.normalizer.in_parts()) file_.cuts.keep_all();
    read_vocabulary();
    read_merges();
    read_added_tokens();
    return std::move(file_);
  }

 private:
  void check_model() {
    const json& model = part_of(root_, "model");
    const bool older = part_of(model, "type").is_null() && part_of(model, "merges").is_array();  // it is BPE
    if (!older && part_of(model, "type") != "BPE") unsupported(name_ + ": model.type", part_of(model, "type"));
    if (!part_of(model, "vocab").is_object() || !part_of(model, "merges").is_array())
      throw BadInput(name_ + ": model", "lacks a vocab object or a merges array");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (const json& value = part_of(model, key); !value.is_null() && value != "")
        unsupported(name_ + ": model." + key, value);
    if (const json& dropout = part_of(model, "dropout"); !dropout.is_null() && dropout != 0.0)
      unsupported(name_ + ": model.dropout", dropout);
  }

  // The ids are those of no gap: an added token outside of them would get another id from the `tokenizers` package.
  void read_vocabulary() {
    const json& model = root_["model"];
    const json& vocabulary = model["vocab"];
    file_.tokens.resize(vocabulary.size());
    std::vector<bool> taken(vocabulary.size());
    for (const auto& [token, value] : vocabulary.items()) {
      const std::string where = name_ + ": token \"" + token + "\"";
      if (token.empty()) throw BadInput(where, "is empty");
      if (!value.is_number_unsigned() || value.get<uint64_t>() >= vocabulary.size())
        throw BadInput(where, "has the id " + value.dump() + ", expected one below the number of tokens, " +
                                  std::to_string(vocabulary.size()));
      const auto id = value.get<size_t>();
      if (taken[id]) throw BadInput(where, "has the id " + value.dump() + " of another token");
      taken[id] = true;
      file_.tokens[id] = token;
      ids_[token] = static_cast<int32_t>(id);
    }
    SubwordRules rules{.byte_level = file_.pre_tokenizer.byte_level(),
                       .byte_fallback = part_of(model, "byte_fallback") == true,
                       .ignore_merges = part_of(model, "ignore_merges") == true,
                       .unknown = "",
                       .fuse_unknown = part_of(model, "fuse_unk") == true};
    if (const json& unknown = part_of(model, "unk_token"); unknown.is_string()) rules.unknown = unknown;
    file_.subwords = Subwords(ids_, rules, name_ + ": model.vocab");
  }

  void read_merges() {
    const std::string where = name_ + ": model.merges";
    for (const json& merge : root_["model"]["merges"]) {
      const auto [left, right] = pair_of(merge, where);
      for (const std::string& token : {left, right, left + right})
        if (!ids_.contains(token))
          throw BadInput(where, merge.dump().substr(0, 120) + " needs \"" + token.substr(0, 120) +
                                    "\", which is not in the vocab");
      file_.subwords.add_merge(left, right, ids_);
    }
  }

  static std::pair<std::string, std::string> pair_of(const json& merge, const std::string& where) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
      return {merge[0].get<std::string>(), merge[1].get<std::string>()};
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
      throw BadInput(where, merge.dump().substr(0, 120) + " is not a pair of tokens");
    return {text.substr(0, space), text.substr(space + 1)};
  }

  void read_added_tokens() {
    const json& added = part_of(root_, "added_tokens");
    if (!added.is_null() && !added.is_array()) unsupported(name_ + ": added_tokens", added);
    for (const json& token : added) {
      const json& content = part_of(token, "content");
      if (!content.is_string() || content == "" || part_of(token, "single_word") == true)
        unsupported(name_ + ": added_tokens", token);
      add({content.get<std::string>(), id_of(token, content.get<std::string>()), part_of(token, "normalized") == true,
           part_of(token, "lstrip") == true, part_of(token, "rstrip") == true});
    }
  }

  // The id that the `tokenizers` package gives whatever the file says: the vocabulary's, or the next.
  int32_t id_of(const json& token, const std::string& content) {
    const std::string where = name_ + ": added token \"" + content + "\"";
    if (!added_.insert({content, true}).second) throw BadInput(where, "is given twice");
    const auto known = ids_.find(content);
    const int32_t id = known != ids_.end() ? known->second : static_cast<int32_t>(file_.tokens.size());
    if (part_of(token, "id") != id)
      throw BadInput(where, "has the id " + part_of(token, "id").dump() + ", expected " +
                                (known != ids_.end() ? "the vocab's, " : "the next after the others, ") +
                                std::to_string(id));
    if (known == ids_.end()) file_.tokens.push_back(content);
    return id;
  }

  void add(const AddedToken& token) {
    file_.added.push_back(token);
    AddedToken searched = token;
    if (token.normalized) searched.content = file_.normalizer.normalized(token.content, true);
    if (searched.content.empty())
      throw BadInput(name_ + ": added token \"" + token.content + "\"", "is empty when normalized");
    file_.tokens[static_cast<size_t>(token.id)] = searched.content;
    const bool strips = token.lstrip || token.rstrip;
    if (token.normalized && strips && file_.normalizer.makes_spaces()) file_.cuts.keep_all();
    file_.cuts.keep_whole(searched, file_.normalizer);
    (token.normalized ? file_.in_normalized_text : file_.in_given_text).add(searched);
  }

  std::string name_;
  json root_;
  TokenizerFile file_;
  std::unordered_map<std::string, int32_t> ids_;
  std::unordered_map<std::string, bool> added_;
};

}  // namespace

TokenizerFile parse_tokenizer_file(const std::string& content, const std::string& where) {
  return Reader(content, where).read();
}

TokenizerFile read_tokenizer_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in || std::filesystem::is_directory(path)) throw BadInput(path.string(), "cannot be read");
  return parse_tokenizer_file(std::string(std::istreambuf_iterator<char>(in), {}), path.string());
}

}  // namespace flashmorph
