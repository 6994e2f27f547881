#include "core/export/hugging_face.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/export/licence.h"
#include "core/io/safetensors.h"
#include "core/mixer/lightning.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/export/small_hybrid.h"

namespace flashmorph {
namespace {

namespace fs = std::filesystem;
using test::small_hybrid;
using test::TemporaryFolder;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using ::testing::UnorderedElementsAre;

std::string read(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  return names;
}

struct ExportHuggingFace : testing::Test {
  ExportReport write(const ExportContent& content) {
    return export_hugging_face(target.path() / "export",
                               export_format("flashmorph", content.hybrid.model, content.hybrid.mixer), content);
  }
  fs::path folder() const { return target.path() / "export"; }

  TemporaryFolder source, target;
};

TEST_F(ExportHuggingFace, WritesEveryFile) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
    fs::copy(fs::path("tests/data/passkey-teacher") / name, source.path() / name);
  const ExportReport report = write(small_hybrid(source.path()));
  EXPECT_THAT(names_in(folder()), UnorderedElementsAre("config.json", "generation_config.json", "model.safetensors",
                                                       "modeling_flashmorph.py", "README.md", "SHA256SUMS",
                                                       "tokenizer.json", "tokenizer_config.json"));
  EXPECT_THAT(names_in(target.path()), UnorderedElementsAre("export"));
  EXPECT_EQ(read(folder() / "modeling_flashmorph.py"),
            read("core/export/modeling_flashmorph.py") + "\n\n" + read("core/mixer/lightning.py"));
  EXPECT_EQ(read(folder() / "tokenizer.json"), read("tests/data/passkey-teacher/tokenizer.json"));
  EXPECT_THAT(
      read(folder() / "README.md"),
      StartsWith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# A hybrid\n\nIt loads with "
                 "transformers 5 or later, and runs code of this folder:\n\n```python\n"));
  EXPECT_THAT(read(folder() / "README.md"), HasSubstr("Its story.\n"));
  EXPECT_EQ(report.format, "flashmorph");
  EXPECT_EQ(report.tokens, 256);
  EXPECT_EQ(report.largest_difference, 0.0);
}

TEST_F(ExportHuggingFace, TheTeachersLicenceIsNamedAndItsFilesGoAlong) {
  std::ofstream(source.path() / "README.md")
      << "---\ntags: [a]\nlicense: \"apache-2.0\"\n---\n# Teacher\nlicense: mit\n";
  for (const char* name : {"LICENSE", "NOTICE", "USE_POLICY.md", "tokenizer.model", "chat_template.jinja"})
    std::ofstream(source.path() / name) << name << "'s text\n";
  write(small_hybrid(source.path()));
  const std::string card = read(folder() / "README.md");
  EXPECT_THAT(card, StartsWith("---\nlicense: apache-2.0\nlibrary_name: transformers\n"));
  EXPECT_THAT(card,
              HasSubstr("The teacher's licence, and so this model's: apache-2.0, as the teacher's README.md says.\n"));
  for (const char* name : {"LICENSE", "NOTICE", "USE_POLICY.md", "tokenizer.model", "chat_template.jinja"})
    EXPECT_EQ(read(folder() / name), read(source.path() / name)) << name;
}

TEST(Licence, IsWhatTheFolderSays) {
  struct {
    const char *card, *licence, *name, *file;
  } const cases[] = {
      {nullptr, nullptr, "", ""},
      {"---\r\nlicense: mit\r\n---\r\n", nullptr, "mit", "README.md"},
      {"---\nlicense:\n- llama3.2\n---\n", nullptr, "llama3.2", "README.md"},
      {"---\nlicense: other\nlicense_name: qwen-research\n---\n", "Text", "qwen-research", "README.md"},
      {"# license: mit\n", nullptr, "", ""},
      {"---\ntags: [a]\n---\nlicense: mit\n", "\n   Apache License\nVersion 2.0\n", "Apache License", "LICENSE"},
      {"---\nlicense: 'mit\\n# Another title'\n---\n", nullptr, "", ""},
      {"---\nlicense: <script>\n---\n", "MIT License (c) A", "MIT License (c) A", "LICENSE"},
  };
  for (const auto& [card, text, name, file] : cases) {
    const TemporaryFolder folder;
    if (card != nullptr) std::ofstream(folder.path() / "README.md") << card;
    if (text != nullptr) std::ofstream(folder.path() / "LICENSE") << text;
    const Licence licence = licence_of(folder.path());
    EXPECT_EQ(licence.name, name) << (card != nullptr ? card : "no card");
    EXPECT_EQ(licence.file, file);
  }
}

TEST_F(ExportHuggingFace, TensorsComeBackExactly) {
  const ExportContent content = small_hybrid(source.path());
  write(content);
  const auto file = SafetensorsFile::open(folder() / "model.safetensors");
  EXPECT_EQ(file->entries().size(), content.tensors.size());
  for (const auto& [name, tensor] : content.tensors) EXPECT_TRUE(at::equal(file->tensor(name), tensor)) << name;
  EXPECT_EQ(file->metadata().at("format"), "pt");
}

TEST_F(ExportHuggingFace, ConfigIsTheTeachersPlusTheHybrids) {
  MixerSection mixer;
  mixer.own.of<LightningSettings>().output_norm = "hidden";
  mixer.rope = false;
  write(small_hybrid(source.path(), mixer));
  const auto config = nlohmann::json::parse(read(folder() / "config.json"));
  auto expected = nlohmann::json::parse(read(source.path() / "config.json"));
  expected.erase("rope_theta");
  expected.update(nlohmann::json::parse(R"({
    "model_type": "flashmorph", "architectures": ["FlashmorphForCausalLM"], "dtype": "float32",
    "auto_map": {"AutoConfig": "modeling_flashmorph.FlashmorphConfig",
                 "AutoModelForCausalLM": "modeling_flashmorph.FlashmorphForCausalLM"},
    "layer_types": ["linear_attention", "full_attention", "linear_attention"]})"));
  for (const auto& [key, value] : expected.items()) EXPECT_EQ(config.at(key), value) << key;
  EXPECT_EQ(config.size(), expected.size() + 1);
  const auto settings = config.at("flashmorph");
  EXPECT_EQ(settings.at("teacher"), "qwen3");
  EXPECT_EQ(settings.at("mixer"), "lightning");
  EXPECT_EQ(settings.at("output_norm"), "hidden");
  EXPECT_EQ(settings.at("rope"), false);
  EXPECT_EQ(settings.at("log_decay").size(), 3u);
  EXPECT_EQ(settings.at("log_decay")[2], nlohmann::json({-0.25, -0.0625, -0.015625, -0.00390625}));  // -2^(-2(h+1))
  EXPECT_EQ(settings.at("rotary").at("teacher"), nlohmann::json({{"rope_theta", 10000.0}}));
  EXPECT_EQ(settings.at("rotary").at("frequencies")[2], 0.01);  // 10000^(-2*2/8)
  EXPECT_EQ(settings.at("query_key_norm"), true);
}

TEST_F(ExportHuggingFace, DtypeIsTheTensors) {
  write(small_hybrid(source.path(), {}, {.dtype = at::kDouble}));
  EXPECT_THAT(read(folder() / "config.json"), HasSubstr(R"("dtype": "float64")"));
}

TEST_F(ExportHuggingFace, InterruptedLeavesNothing) {
  ExportContent content = small_hybrid(source.path());
  content.tensors.emplace_back("unwritable", at::zeros({2}, at::kComplexFloat));
  EXPECT_ANY_THROW(write(content));
  EXPECT_THAT(names_in(target.path()), IsEmpty());
}

TEST_F(ExportHuggingFace, AMissingTensorIsNoExport) {
  ExportContent content = small_hybrid(source.path());
  content.tensors.pop_back();
  EXPECT_THROW(write(content), BadInput);
  EXPECT_THAT(names_in(target.path()), IsEmpty());
}

// The format of our own, but one channel of one norm is written wrong.
class Careless : public ExportFormat {
 public:
  explicit Careless(double error) : error_(error) {}
  std::string name() const override { return "careless"; }
  std::string obstacle(const ModelSpec& model, const MixerSection& mixer) const override {
    return good_.obstacle(model, mixer);
  }
  bool brings_code() const override { return good_.brings_code(); }
  nlohmann::ordered_json config(const HybridSpec& hybrid, const nlohmann::ordered_json& teacher) const override {
    return good_.config(hybrid, teacher);
  }
  NamedTensors tensors(const HybridSpec& hybrid, const NamedTensors& own) const override {
    NamedTensors written = good_.tensors(hybrid, own);
    for (auto& [name, tensor] : written)
      if (name == "model.norm.weight") tensor = tensor + error_ * at::one_hot(at::zeros({}, at::kLong), tensor.numel());
    return written;
  }
  bool reads(const ConfigJson& config) const override { return good_.reads(config); }
  HybridSpec hybrid_of(const ConfigJson& config) const override { return good_.hybrid_of(config); }
  ModelFiles own_tensors(const ModelFiles& files, const HybridSpec& hybrid) const override {
    return good_.own_tensors(files, hybrid);
  }

 private:
  const ExportFormat& good_ = *export_formats().back();
  double error_;
};

TEST_F(ExportHuggingFace, FilesThatGiveOtherLogitsAreNoExport) {
  const ExportContent content = small_hybrid(source.path());
  try {
    export_hugging_face(folder(), Careless(1e-2), content);
    ADD_FAILURE() << "it was exported";
  } catch (const std::runtime_error& wrong) {
    EXPECT_THAT(wrong.what(), HasSubstr("a logit differs by"));
  }
  EXPECT_THAT(names_in(target.path()), IsEmpty());
  const ExportReport report = export_hugging_face(folder(), Careless(1e-5), content);
  EXPECT_GT(report.largest_difference, 1e-7);
  EXPECT_LT(report.largest_difference, 2e-4);
}

TEST_F(ExportHuggingFace, ReplacesAnOlderExportAndWhatAKilledOneLeft) {
  for (const char* name : {"export", ".export.partial", ".export.old"}) {
    fs::create_directory(target.path() / name);
    std::ofstream(target.path() / name / "stale") << "stale";
  }
  ExportContent content = small_hybrid(source.path());
  content.tensors.emplace_back("unwritable", at::zeros({2}, at::kComplexFloat));
  EXPECT_ANY_THROW(write(content));
  EXPECT_THAT(names_in(folder()), UnorderedElementsAre("stale"));

  content.tensors.pop_back();
  write(content);
  EXPECT_THAT(names_in(target.path()), UnorderedElementsAre("export"));
  EXPECT_FALSE(fs::exists(folder() / "stale"));
}

TEST_F(ExportHuggingFace, RefusesATeachersConfigThatIsGone) {
  const ExportContent content = small_hybrid(source.path());
  for (const char* text : {"{", "[1", ""}) {
    std::ofstream(source.path() / "config.json") << text;
    EXPECT_THROW(write(content), BadInput) << text;
  }
  fs::remove(source.path() / "config.json");
  EXPECT_THROW(write(content), BadInput);
  EXPECT_THAT(names_in(target.path()), IsEmpty());
}

}  // namespace
}  // namespace flashmorph
