#include "core/export/hugging_face.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/safetensors.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

namespace fs = std::filesystem;
using test::TemporaryFolder;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

const fs::path kTeacher = "tests/data/passkey-teacher";

ExportContent random_content() {
  return {.source = kTeacher,
          .tensors = {{"model.embed_tokens.weight", at::randn({8, 4})},
                      {"model.layers.0.linear_attn.o_norm.weight", at::randn({6})},
                      {"model.layers.2.self_attn.q_proj.weight", at::randn({6, 4}).t()}},
          .full_layers = {2, 7},
          .mixer = {},
          .model_card = "# A hybrid\n"};
}

std::string read(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  return names;
}

TEST(ExportHuggingFace, WritesEveryFile) {
  const TemporaryFolder temporary;
  const fs::path folder = temporary.path() / "run" / "export";
  export_hugging_face(folder, random_content());
  EXPECT_THAT(names_in(folder),
              UnorderedElementsAre("config.json", "generation_config.json", "model.safetensors",
                                   "modeling_flashmorph.py", "README.md", "tokenizer.json", "tokenizer_config.json"));
  EXPECT_THAT(names_in(folder.parent_path()), UnorderedElementsAre("export"));
  EXPECT_EQ(read(folder / "modeling_flashmorph.py"), read("core/export/modeling_flashmorph.py"));
  EXPECT_EQ(read(folder / "tokenizer.json"), read(kTeacher / "tokenizer.json"));
  EXPECT_EQ(read(folder / "README.md"), "# A hybrid\n");
}

TEST(ExportHuggingFace, TensorsComeBackExactly) {
  const TemporaryFolder temporary;
  const ExportContent content = random_content();
  export_hugging_face(temporary.path() / "export", content);
  const auto file = SafetensorsFile::open(temporary.path() / "export" / "model.safetensors");
  EXPECT_EQ(file->entries().size(), content.tensors.size());
  for (const auto& [name, tensor] : content.tensors) EXPECT_TRUE(at::equal(file->tensor(name), tensor)) << name;
  EXPECT_EQ(file->metadata().at("format"), "pt");
}

TEST(ExportHuggingFace, ConfigIsTheTeachersPlusTheHybrids) {
  const TemporaryFolder temporary;
  ExportContent content = random_content();
  content.mixer.output_norm = "hidden";
  content.mixer.rope = false;
  export_hugging_face(temporary.path() / "export", content);
  const auto config = nlohmann::json::parse(read(temporary.path() / "export" / "config.json"));
  auto expected = nlohmann::json::parse(read(kTeacher / "config.json"));
  expected.erase("torch_dtype");
  expected.update(nlohmann::json::parse(R"({
    "model_type": "flashmorph", "architectures": ["FlashmorphForCausalLM"], "dtype": "float32",
    "auto_map": {"AutoConfig": "modeling_flashmorph.FlashmorphConfig",
                 "AutoModelForCausalLM": "modeling_flashmorph.FlashmorphForCausalLM"},
    "flashmorph": {"mixer": "lightning", "decay": "alibi", "output_norm": "hidden", "rope": false, "chunk": 64}})"));
  for (int layer = 0; layer < 12; ++layer) {
    expected["layer_types"].push_back(layer == 2 || layer == 7 ? "full_attention" : "linear_attention");
    expected["flashmorph"]["log_decay"].push_back({-0.25, -0.0625, -0.015625, -0.00390625});  // -2^(-2(h+1))
  }
  EXPECT_EQ(config, expected);
}

TEST(ExportHuggingFace, DtypeIsTheTensors) {
  const TemporaryFolder temporary;
  ExportContent content = random_content();
  for (auto& [name, tensor] : content.tensors) tensor = tensor.to(at::kDouble);
  export_hugging_face(temporary.path() / "export", content);
  EXPECT_THAT(read(temporary.path() / "export" / "config.json"), HasSubstr(R"("dtype": "float64")"));
}

TEST(ExportHuggingFace, InterruptedLeavesNothing) {
  const TemporaryFolder temporary;
  ExportContent content = random_content();
  content.tensors.emplace_back("unwritable", at::zeros({2}, at::kComplexFloat));
  EXPECT_ANY_THROW(export_hugging_face(temporary.path() / "export", content));
  EXPECT_THAT(names_in(temporary.path()), IsEmpty());
}

TEST(ExportHuggingFace, ReplacesAnOlderExportAndWhatAKilledOneLeft) {
  const TemporaryFolder temporary;
  for (const char* name : {"export", ".export.partial", ".export.old"}) {
    fs::create_directory(temporary.path() / name);
    std::ofstream(temporary.path() / name / "stale") << "stale";
  }
  ExportContent content = random_content();
  content.tensors.emplace_back("unwritable", at::zeros({2}, at::kComplexFloat));
  EXPECT_ANY_THROW(export_hugging_face(temporary.path() / "export", content));
  EXPECT_THAT(names_in(temporary.path() / "export"), UnorderedElementsAre("stale"));

  export_hugging_face(temporary.path() / "export", random_content());
  EXPECT_THAT(names_in(temporary.path()), UnorderedElementsAre("export"));
  EXPECT_FALSE(fs::exists(temporary.path() / "export" / "stale"));
}

// The fault of exporting from a source folder whose config.json holds `config`.
std::string fault_of(const std::string& config) {
  const TemporaryFolder source, target;
  std::ofstream(source.path() / "config.json") << config;
  ExportContent content = random_content();
  content.source = source.path();
  try {
    export_hugging_face(target.path() / "export", content);
  } catch (const BadInput& bad) {
    EXPECT_EQ(bad.faults().front().where, (source.path() / "config.json").string());
    EXPECT_THAT(names_in(target.path()), IsEmpty());
    return bad.faults().front().what;
  }
  return "no fault";
}

TEST(ExportHuggingFace, RefusesAConfigItCannotUse) {
  EXPECT_THAT(fault_of("{"), HasSubstr("expected a JSON object"));
  EXPECT_THAT(fault_of("[1]"), HasSubstr("expected a JSON object"));
  EXPECT_THAT(fault_of(R"({"num_attention_heads": 4})"), HasSubstr("num_hidden_layers"));
  EXPECT_THAT(fault_of(R"({"num_hidden_layers": 12, "num_attention_heads": "4"})"),
              HasSubstr("num_attention_heads: expected a positive integer, found \"4\""));
}

TEST(ExportHuggingFace, RefusesASourceWithoutConfig) {
  const TemporaryFolder source, target;
  ExportContent content = random_content();
  content.source = source.path();
  EXPECT_THROW(export_hugging_face(target.path() / "export", content), BadInput);
  EXPECT_THAT(names_in(target.path()), IsEmpty());
}

TEST(ExportHuggingFace, RefusesAFullLayerTheModelDoesNotHave) {
  const TemporaryFolder target;
  ExportContent content = random_content();
  content.full_layers = {12};
  EXPECT_ANY_THROW(export_hugging_face(target.path() / "export", content));
  EXPECT_THAT(names_in(target.path()), IsEmpty());
}

}  // namespace
}  // namespace flashmorph
