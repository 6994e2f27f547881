#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "core/base/bad_input.h"
#include "distributed/parallel/on_all_ranks.h"
#include "tests/faults/scratch.h"

// A good run, and everything that can be wrong with what it is given: the mesh, the model, the corpus, the run's own
// folder (the YAML and checkpoints have their own tables, tests/unit/config/bad_config_test.cpp and
// bad_checkpoints_test.cpp). Each row damages one thing; the start must refuse it with one line that names the file,
// key or tensor, what was found and what was expected, and leave the disk as it was.

namespace flashmorph {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::edit;
using test::read;
using test::Scratch;
using test::write;
using testing::HasSubstr;

struct BadInputRow {
  const char* name;
  std::function<void(Scratch&)> damage;
  const char* expected;  // in the message
};

void PrintTo(const BadInputRow& row, std::ostream* out) { *out << row.name; }

class BadInputs : public testing::TestWithParam<BadInputRow> {};

TEST_P(BadInputs, EndTheStartWithOneLineAndNothingChanged) {
  Scratch scratch;
  GetParam().damage(scratch);
  if (HasFatalFailure()) return;
  const std::set<std::string> before = scratch.disk();
  try {
    const int code = scratch.start();
    FAIL() << "was accepted, exit code " << code;
  } catch (const BadInput& fault) {
    const std::string message = fault.what();
    EXPECT_THAT(message, HasSubstr(GetParam().expected));
    EXPECT_EQ(std::ranges::count(message, '\n'), 0) << "one mistake is one line:\n" << message;
  }
  EXPECT_EQ(scratch.disk(), before);
}

BadInputRow setting(const char* name, const char* set, const char* expected) {
  return {name, [set](Scratch& scratch) { scratch.set.push_back(set); }, expected};
}
BadInputRow model(const char* name, const char* key, const json& value, const char* expected) {
  return {name, [key, value](Scratch& scratch) { scratch.change_config(key, value); }, expected};
}
BadInputRow file(const char* name, const char* path, const std::string& content, const char* expected) {
  return {name, [path, content](Scratch& scratch) { write(scratch.path(path), content); }, expected};
}
BadInputRow missing(const char* name, const char* path, const char* expected) {
  return {name, [path](Scratch& scratch) { fs::remove(scratch.path(path)); }, expected};
}

TEST(Loading, IsBrokenOffWhenAskedTo) {
  Scratch scratch;
  scratch.set = {"run.time_limit=1e-9"};
  const std::set<std::string> before = scratch.disk();
  try {
    scratch.start();
    FAIL() << "was not stopped";
  } catch (const Stopped& stopped) {
    EXPECT_STREQ(stopped.what(), "stopped while loading: run.time_limit is over");
  }
  EXPECT_EQ(scratch.disk(), before);
}

TEST(RunFolder, GoesOnWhenTheSameBytesLieElsewhere) {
  Scratch scratch;
  EXPECT_EQ(scratch.start(), 0);
  fs::rename(scratch.path("teacher"), scratch.path("moved"));
  fs::rename(scratch.path("text.txt"), scratch.path("moved.txt"));
  scratch.set = {"model.path=" + scratch.path("moved").string(), "data.text=" + scratch.path("moved.txt").string()};
  EXPECT_EQ(scratch.start(), 0);
  EXPECT_THAT(read(scratch.run("events.jsonl")), HasSubstr("other than at the last start: model.path: "));
  EXPECT_THAT(read(scratch.run("run.yaml")), HasSubstr("moved.txt"));
}

std::string name_of(const testing::TestParamInfo<BadInputRow>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(
    Mesh, BadInputs,
    testing::Values(setting("TensorDoesNotDivide", "parallel.tensor=3",
                            "parallel.tensor: 3 does not divide the 1 ranks"),
                    setting("PipelineDoesNotDivide", "parallel.pipeline=2", "parallel: tensor 1 x pipeline 2 is 2"),
                    setting("StageHasAnotherMesh", "stages.select.parallel.tensor=2",
                            "stages.select.parallel.tensor: 2 does not divide"),
                    setting("CutsOfOnePipelineRank", "parallel.pipeline_cuts=[1]", "parallel.pipeline_cuts")),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    Config, BadInputs,
    testing::Values(
        missing("NoFile", "run.yaml", "run.yaml: cannot be read"),
        file("NotYaml", "run.yaml", "run: [", "run.yaml (line 1): is not YAML"),
        setting("AllLayersFull", "budget.full_layers=2",
                "budget.full_layers: keeps full attention in 2 layers, expected 1 to 1 for a model of 2 layers"),
        setting("TooFewBytes", "budget={kv_bytes_per_token: 1}", "budget.kv_bytes_per_token"),
        setting("UnknownMixer", "mixer.kind=mamba", "mixer.kind (--set): is 'mamba', expected one of: "),
        setting("UnknownSelector", "stages.select.method=best",
                "stages.select.method (--set): is 'best', expected one of: ablate, all_linear, beam, exhaustive, "
                "flashmorph, "
                "given, greedy, halo, kl_ls, random, uniform"),
        setting("ComparedWithAnUnknownSelector", "stages.evaluate.compare=[best]",
                "stages.evaluate.compare (--set): is 'best', expected one of: "),
        setting("LayersWithoutGiven", "stages.select.layers=[0]",
                "stages.select.layers: is [0], but flashmorph has no such setting, it is given's: leave it out"),
        setting("GivenWithoutLayers", "stages.select.method=given",
                "stages.select.layers: the method given needs exactly one of"),
        setting("ExportCannotHoldIt", "stages.export.format=qwen3_5_text", "cannot hold this hybrid"),
        setting("LongerThanTheModel", "stages.evaluate.lengths=[8192]",
                "stages.evaluate.lengths: asks for 8192 tokens; the model's longest position is 4096"),
        setting("PasskeysDoNotFit", "stages.align.data.passkeys=10", "stages.align.data"),
        setting("NotAnAddress", "metrics.listen=nowhere", "metrics.listen")),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    Model, BadInputs,
    testing::Values(
        BadInputRow{"NoFolder", [](Scratch& scratch) { fs::remove_all(scratch.path("teacher")); },
                    "expected the config.json"},
        missing("NoConfig", "teacher/config.json", "expected the config.json of a Hugging Face model folder"),
        file("ConfigIsNotJson", "teacher/config.json", "{", "config.json"),
        file("ConfigIsAList", "teacher/config.json", "[1]", "config.json"),
        model("UnknownFamily", "model_type", "mamba", "model_type: is 'mamba', supported: "),
        model("NoSize", "hidden_size", nullptr, "hidden_size: is missing"),
        model("SizeIsText", "hidden_size", "32", "hidden_size"),
        model("SizeIsNegative", "num_hidden_layers", -2, "num_hidden_layers"),
        model("TooManyLayers", "num_hidden_layers", 100000, "num_hidden_layers: is 100000, expected at most 10000"),
        model("HeadsDoNotShare", "num_key_value_heads", 3, "num_key_value_heads: is 3, which does not divide the 4"),
        model("OddHead", "head_dim", 7, "head_dim: is 7, expected an even number"),
        model("AnotherActivation", "hidden_act", "gelu", "hidden_act: is gelu, only silu is supported"),
        model("Quantized", "quantization_config", json{{"bits", 4}},
              "quantization_config: quantized weights are not supported"),
        model("MoreLayersThanWeights", "num_hidden_layers", 3, "has no tensor model.layers.2."),
        model("OtherShape", "intermediate_size", 49, "mlp.down_proj.weight: has shape [32, 48], expected [32, 49]"),
        model("VocabularyBelowTheTokenizers", "vocab_size", 512,
              "model.embed_tokens.weight: has shape [1024, 32], expected [512, 32]"),
        missing("NoWeights", "teacher/model.safetensors", "model.safetensors"),
        file("EmptyWeights", "teacher/model.safetensors", "", "model.safetensors"),
        file("HugeHeader", "teacher/model.safetensors", std::string("\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10),
             "declares a header"),
        BadInputRow{"TruncatedWeights",
                    [](Scratch& scratch) { fs::resize_file(scratch.teacher("model.safetensors"), 20000); },
                    "model.safetensors"},
        BadInputRow{"TensorUnderAnotherName",
                    [](Scratch& scratch) {
                      edit(scratch.teacher("model.safetensors"), "model.norm.weight", "model.nora.weight");
                    },
                    "has no tensor model.norm.weight"},
        BadInputRow{"OtherDtype",
                    [](Scratch& scratch) {
                      auto tensors = test::tensors_of({.vocabulary = 1024});
                      tensors[0].second = tensors[0].second.to(at::kInt);
                      write_safetensors(scratch.teacher("model.safetensors"), tensors);
                    },
                    "is Int, expected a floating-point type"},
        BadInputRow{"NotFinite",
                    [](Scratch& scratch) {
                      auto tensors = test::tensors_of({.vocabulary = 1024});
                      tensors[3].second.flatten()[5] = std::numeric_limits<float>::infinity();
                      write_safetensors(scratch.teacher("model.safetensors"), tensors);
                    },
                    "holds values that are not finite"},
        missing("NoTokenizer", "teacher/tokenizer.json", "tokenizer.json: cannot be read"),
        file("TokenizerIsNotJson", "teacher/tokenizer.json", "{]", "tokenizer.json"),
        file("TokenizerHasNoVocabulary", "teacher/tokenizer.json", "{\"model\": {\"type\": \"BPE\"}}",
             "tokenizer.json")),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    Corpus, BadInputs,
    testing::Values(missing("NoText", "text.txt", "text.txt: cannot be opened"),
                    file("EmptyText", "text.txt", "", "text.txt: is empty"),
                    file("ShortText", "text.txt", "a few words", "the longest sequence needs"),
                    file("NotUtf8", "text.txt", "good\xff\xfe" + std::string(60000, 'x'), "text.txt"),
                    setting("TextIsAFolder", "data.text=tests", "data.text: tests"),
                    setting("NoJsonLines", "data={jsonl: none.jsonl}", "data.jsonl: none.jsonl"),
                    BadInputRow{"LineIsNotJson",
                                [](Scratch& scratch) {
                                  write(scratch.path("lines.jsonl"), "{\"text\": \"one\"}\n{\"text\": \n");
                                  scratch.set.push_back("data={jsonl: " + scratch.path("lines.jsonl").string() + "}");
                                },
                                "line 2"},
                    BadInputRow{"LineHasNoField",
                                [](Scratch& scratch) {
                                  write(scratch.path("lines.jsonl"), "{\"body\": \"one\"}\n");
                                  scratch.set.push_back("data={jsonl: " + scratch.path("lines.jsonl").string() + "}");
                                },
                                "line 1"},
                    setting("NoTokenFiles", "data={tokens: none}", "data.tokens: none.bin: cannot be opened"),
                    setting("PatternMatchesNothing", "data.text=none-*.txt", "data.text: none-*.txt: matches no file"),
                    setting("NoSuchSource", "data={sources: [{path: README.md}, {path: none}]}",
                            "data.sources.1.path: none: is no file or folder, nor are there token files none.idx"),
                    setting("SourceTooShort", "data={sources: [{path: configs/quickstart.yaml}]}",
                            "data.sources.0.path: configs/quickstart.yaml: its training part has "),
                    file("TextIsAGitLfsPointer", "text.txt", "version https://git-lfs.github.com/spec/v1\n",
                         "text.txt: is a Git LFS pointer"),
                    file("TextIsPackedAsXz", "text.txt",
                         "\xFD"
                         "7zXZ",
                         "text.txt: is xz, expected text, gzip or zstd"),
                    file("TextIsBrokenGzip", "text.txt", "\x1F\x8B\x08", "text.txt: "),
                    BadInputRow{"TextIsTooLarge",
                                [](Scratch& scratch) { fs::resize_file(scratch.path("text.txt"), 100'000'001); },
                                "makes it more than 100 MB of text, which every rank would tokenize at every start"}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    RunFolder, BadInputs,
    testing::Values(setting("IsBelowAFile", "run.dir=README.md/x", "README.md is not a folder"),
                    BadInputRow{"HoldsAnotherConfig",
                                [](Scratch& scratch) {
                                  scratch.start();
                                  scratch.set.push_back("stages.select.objective=paper");
                                },
                                "stages.select.objective: \"budget\" -> \"paper\""},
                    BadInputRow{"HoldsTheSameBytesAsAnotherKindOfCorpus",
                                [](Scratch& scratch) {
                                  scratch.use_json_lines();
                                  scratch.start();
                                  scratch.set = {"data={text: " + scratch.path("lines.jsonl").string() + "}"};
                                },
                                "holds a run of another configuration; this one changes data.text: "},
                    BadInputRow{"IsOfAnotherTeacher",
                                [](Scratch& scratch) {
                                  scratch.start();
                                  test::write_small_model(scratch.path("teacher"), {.vocabulary = 1024, .seed = 2});
                                },
                                "was made from another teacher"},
                    BadInputRow{"IsOfATeacherWithAnotherConfig",
                                [](Scratch& scratch) {
                                  scratch.start();
                                  scratch.change_config("rope_theta", 20000.0);
                                },
                                "was made from another teacher"},
                    BadInputRow{"IsOfAnotherText",
                                [](Scratch& scratch) {
                                  scratch.start();
                                  edit(scratch.path("text.txt"), "Citizen", "citizen");
                                },
                                "text.txt: is not the corpus that "},
                    BadInputRow{"IsOfALongerText",
                                [](Scratch& scratch) {
                                  scratch.start();
                                  write(scratch.path("text.txt"), read(scratch.path("text.txt")) + "\n");
                                },
                                "it has 60001 bytes of SHA-256 "},
                    BadInputRow{"IsOfAShorterText",
                                [](Scratch& scratch) {
                                  scratch.start();
                                  fs::resize_file(scratch.path("text.txt"), 50000);
                                },
                                ", expected 60000 bytes of SHA-256 "},
                    BadInputRow{"IsOfMoreFiles",
                                [](Scratch& scratch) {
                                  scratch.set = {"data.text=" + scratch.path("text*.txt").string()};
                                  scratch.start();
                                  fs::copy(scratch.path("text.txt"), scratch.path("text2.txt"));
                                },
                                "data: names 2 files, "},
                    BadInputRow{"IsOfOtherJsonLines",
                                [](Scratch& scratch) {
                                  scratch.use_json_lines();
                                  scratch.start();
                                  edit(scratch.path("lines.jsonl"), "Citizen", "citizen");
                                },
                                "lines.jsonl: is not the corpus that "},
                    BadInputRow{"IsOfOtherTokens",
                                [](Scratch& scratch) {
                                  scratch.use_tokens({0, 1, 3}, 0);
                                  scratch.start();
                                  scratch.use_tokens({0, 1, 3}, 1);
                                },
                                "tokens.bin: is not the corpus that "},
                    BadInputRow{"IsOfOtherDocuments",
                                [](Scratch& scratch) {
                                  scratch.use_tokens({0, 1, 3}, 0);
                                  scratch.start();
                                  scratch.use_tokens({0, 2, 3}, 0);
                                },
                                "tokens.idx: is not the corpus that "},
                    BadInputRow{"ItsConfigIsNotYaml",
                                [](Scratch& scratch) {
                                  scratch.start();
                                  write(scratch.run("run.yaml"), "run: [");
                                },
                                "runs/run/run.yaml (line 1): is not YAML"},
                    BadInputRow{"IsLockedByAnotherHost",
                                [](Scratch& scratch) {
                                  fs::create_directories(scratch.run(""));
                                  write(scratch.run("lock"), "elsewhere 7 2026-01-02T03:04:05Z -\n");
                                },
                                "was left locked by process 7 on host elsewhere since 2026-01-02T03:04:05Z"},
                    BadInputRow{"StateIsEmpty",
                                [](Scratch& scratch) {
                                  scratch.start();
                                  write(scratch.run("state.pb"), "");
                                },
                                "state.pb: is not a flashmorph.proto.RunState; it was damaged or edited"},
                    BadInputRow{"StateIsCutShort",
                                [](Scratch& scratch) {
                                  scratch.start();
                                  fs::resize_file(scratch.run("state.pb"), 50);
                                },
                                "state.pb: is not a flashmorph.proto.RunState; it was damaged or edited"},
                    BadInputRow{"StateIsDamaged",
                                [](Scratch& scratch) {
                                  scratch.start();
                                  write(scratch.run("state.pb"), "\xff\xff\xff not a message");
                                },
                                "state.pb"},
                    BadInputRow{"PlanIsNotJson",
                                [](Scratch& scratch) {
                                  scratch.stop_before("evaluate teacher");
                                  write(scratch.run("plan.json"), "{\"plans\": [");
                                },
                                "plan.json"},
                    BadInputRow{"PlanWasEdited",
                                [](Scratch& scratch) {
                                  scratch.stop_before("evaluate teacher");
                                  json plan = json::parse(read(scratch.run("plan.json")));
                                  plan["plans"][0]["name"] = "mine";
                                  write(scratch.run("plan.json"), plan.dump());
                                },
                                "is not what this run's discretize wrote"},
                    BadInputRow{"PlanIsGone",
                                [](Scratch& scratch) {
                                  scratch.stop_before("evaluate teacher");
                                  fs::remove(scratch.run("plan.json"));
                                },
                                "plan.json: is not what this run's discretize wrote"},
                    BadInputRow{"GatesAreGone",
                                [](Scratch& scratch) {
                                  scratch.stop_before("discretize");
                                  fs::remove(scratch.run("gates.json"));
                                },
                                "gates.json: cannot be read"},
                    BadInputRow{"GatesWereEdited",
                                [](Scratch& scratch) {
                                  scratch.stop_before("discretize");
                                  json gates = json::parse(read(scratch.run("gates.json")));
                                  gates["alpha"].erase(0);
                                  write(scratch.run("gates.json"), gates.dump());
                                },
                                "gates.json: is not what select of this run wrote: its SHA-256 is "},
                    BadInputRow{"GatesAreNotJson",
                                [](Scratch& scratch) {
                                  scratch.stop_before("discretize");
                                  write(scratch.run("gates.json"), "gates");
                                },
                                "gates.json"},
                    BadInputRow{"EvaluationHasAnUnknownField",
                                [](Scratch& scratch) {
                                  scratch.stop_before("export");
                                  write(scratch.run("evaluation.json"), "{\"measured\": []}");
                                },
                                "evaluation.json"},
                    BadInputRow{"BranchesAreGone",
                                [](Scratch& scratch) {
                                  scratch.stop_before("select");
                                  fs::remove(scratch.run("branches/branches.safetensors"));
                                },
                                "branches.safetensors"},
                    BadInputRow{"BranchesAreCutShort",
                                [](Scratch& scratch) {
                                  scratch.stop_before("select");
                                  fs::resize_file(scratch.run("branches/branches.safetensors"), 3000);
                                },
                                "branches.safetensors"},
                    BadInputRow{"ABranchWasEdited",
                                [](Scratch& scratch) {
                                  scratch.stop_before("select");
                                  edit(scratch.run("branches/branches.safetensors"), "linear_attn.q_proj",
                                       "linear_attn.q_proo");
                                },
                                "branches.safetensors: is not what align of this run wrote: its SHA-256 is "},
                    BadInputRow{"HybridIsGone",
                                [](Scratch& scratch) {
                                  scratch.stop_before("export");
                                  fs::remove(scratch.run("hybrid/flashmorph/distill.safetensors"));
                                },
                                "distill.safetensors: cannot be read"},
                    BadInputRow{
                        "HybridIsCutShort",
                        [](Scratch& scratch) {
                          scratch.stop_before("export");
                          fs::resize_file(scratch.run("hybrid/flashmorph/distill.safetensors"), 3000);
                        },
                        "distill.safetensors: is not what distill flashmorph of this run wrote: its SHA-256 is "}),
    name_of);

}  // namespace
}  // namespace flashmorph
