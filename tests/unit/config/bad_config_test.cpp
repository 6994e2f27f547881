#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/unit/config/sample.h"

namespace flashmorph {
namespace {

using test::faults_of;
using test::kGood;
using testing::HasSubstr;

struct BadYaml {
  const char* change;  // appended, or "key=value" through --set when it holds a '='
  const char* expected;
};

class BadConfig : public testing::TestWithParam<BadYaml> {};

TEST_P(BadConfig, NamesKeyPlaceAndExpectation) {
  const auto [change, expected] = GetParam();
  const std::string text = change;
  const bool override = text.find('=') != std::string::npos;
  const std::string faults = override ? faults_of(kGood, {text}) : faults_of(kGood + text);
  EXPECT_THAT(faults, HasSubstr(expected));
  EXPECT_EQ(std::count(faults.begin(), faults.end(), '\n'), 0) << "one mistake is one fault:\n" << faults;
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadConfig,
    testing::Values(
        BadYaml{"  algin: {tokens: 1}\n", "stages.algin (line 7): no such key; did you mean align?"},
        BadYaml{"  distill: {tokenz: 1}\n", "stages.distill.tokenz (line 7): no such key; did you mean tokens?"},
        BadYaml{"mixr: {kind: lightning}\n", "mixr (line 7): no such key; did you mean mixer?"},
        BadYaml{"zebra: 1\n", "zebra (line 7): no such key; known here: run, model"},
        BadYaml{"budget: {full_layers: 2}\n", "budget (line 7): stands here a second time"},
        BadYaml{"  distill: 5\n", "stages.distill (line 7): is '5', expected a map of keys"},
        BadYaml{"device: {dtype: bf16}\n", "device.dtype (line 7): is 'bf16', expected one of: float32, float64"},
        BadYaml{"device: {kind: tpu}\n", "device.kind (line 7): is 'tpu', expected one of: cpu, cuda"},
        BadYaml{"device: {threads: 0}\n", "device.threads (line 7): is 0, expected a number in [1, 1024]"},
        BadYaml{"device: {threads: 1.5}\n", "device.threads (line 7): is '1.5', expected a whole number"},
        BadYaml{"parallel: {tensor: two}\n", "parallel.tensor (line 7): is 'two', expected a whole number"},
        BadYaml{"mixer: {init: warm}\n", "mixer.init (line 7): is 'warm', expected one of: default, data"},
        BadYaml{"mixer: {decay: slow}\n", "mixer.decay (line 7): is 'slow', expected one of: alibi, retnet, layered"},
        BadYaml{"mixer: {rope: yes}\n", "mixer.rope (line 7): is 'yes', expected true or false"},
        BadYaml{"mixer: {rope: On}\n", "mixer.rope (line 7): is 'On', expected true or false"},
        BadYaml{"mixer: {rope: tRUE}\n", "mixer.rope (line 7): is 'tRUE', expected true or false"},
        BadYaml{"mixer: {<<: 5}\n", "mixer.<< (line 7): expected a map or a list of maps"},
        BadYaml{"mixer: {<<: {ropes: true}}\n", "mixer.ropes (line 7): no such key; did you mean rope?"},
        BadYaml{"mixer: &m {<<: *m, rope: true}\n", "mixer.<< (line 7): expected a map or a list of maps"},
        BadYaml{"run: {dir: ~someone/runs}\n", "run.dir (line 7): is '~someone/runs', expected ~/... or a whole path"},
        BadYaml{"run: {dir: \"${NO_SUCH_NAME}/runs\"}\n",
                "run.dir (line 7): is '${NO_SUCH_NAME}/runs', but $NO_SUCH_NAME is not set"},
        BadYaml{"mixer: {chunk: 0}\n", "mixer.chunk (line 7): is 0, expected a number in [1, 4096]"},
        BadYaml{"run: {name: a/b}\n", "run.name (line 7): is 'a/b', expected a plain folder name"},
        BadYaml{"run: {seed: -1}\n", "run.seed (line 7): is -1, expected a number at least 0"},
        BadYaml{"  [oops\n", "run.yaml (line 8): is not YAML"},
        BadYaml{"data={sources: x}", "data.sources (--set): is 'x', expected a list of maps"},
        BadYaml{"data={sources: []}", "data.sources (--set): is a list, expected a list of maps"},
        BadYaml{"data={sources: [x]}", "data.sources.0 (--set): is 'x', expected a map of keys"},
        BadYaml{"data={sources: [{path: a}, {path: b, paht: b}]}",
                "data.sources.1.paht (--set): no such key; did you mean path?"},
        BadYaml{"data={sources: [{weight: 2}]}", "data.sources.0.path: is missing: "},
        BadYaml{"data={sources: [{path: a, weight: 0}]}", "data.sources.0.weight (--set): is 0, expected a number in"},
        BadYaml{"data={sources: [{path: a, path: b}]}", "data.sources.0.path (--set): stands here a second time"},
        BadYaml{"data.sources.1.weight=2", "data.sources.1.weight (--set): no such key; data.sources is a value"},
        BadYaml{"data.shuffle=-1", "data.shuffle (--set): is -1, expected a number at least 0"},
        BadYaml{"data.held_out=1.5", "data.held_out (--set): is 1.5, expected a number in [0.001, 0.9]"},
        BadYaml{"budget.full_layers=0",
                "budget (line 2): needs exactly one of full_layers, ratio, kv_bytes_per_token and milliseconds"},
        BadYaml{"budget.ratio=3:1", "budget (line 2): needs exactly one of full_layers"},
        BadYaml{"stages.select.tokens=0", "stages.select.tokens (--set): is 0, expected a number at least 1"},
        BadYaml{"stages.align.tokens=0",
                "stages.align.tokens (--set): is missing or 0: the branches need tokens to train"},
        BadYaml{"stages.align.data.lengths=[500]",
                "stages.align.data.lengths (--set): is 500, expected a divisor of batch_tokens, 8192"},
        BadYaml{"stages.align.data.lengths=[]",
                "stages.align.data.lengths (--set): is a list, expected a number or a list"},
        BadYaml{"stages.align.micro_batch_tokens=3000",
                "micro_batch_tokens (--set): is 3000, expected a divisor of batch_tokens, 8192"},
        BadYaml{"stages.align.data.passkeys=[8, 4]", "is [8, 4], expected min <= max"},
        BadYaml{"stages.align.data.passkeys=11",
                "stages.align.data.passkeys (--set): is 11, expected a number in [1, 10]"},
        BadYaml{"stages.align.lr.from=0", "stages.align.lr.from (--set): is 0"},
        BadYaml{"stages.align.beta1=1", "stages.align.beta1 (--set): is 1"},
        BadYaml{"stages.select.clip=1", "stages.select.clip (--set): no such key"},
        BadYaml{"stages.select.data.passkey_share=0.5", "stages.select.data.passkey_share (--set): no such key"},
        BadYaml{"stages.select.method=best",
                "stages.select.method (--set): is 'best', expected one of: ablate, all_linear, "},
        BadYaml{"mixer: {kind: mamba}\n",
                "mixer.kind (line 7): is 'mamba', expected one of: gated_delta_net, gla, lightning, mamba2, window"},
        BadYaml{"  evaluate: {compare: [best]}\n",
                "stages.evaluate.compare (line 7): is 'best', expected one of: ablate, all_linear, "},
        BadYaml{"stages.evaluate.compare=[uniform, uniform]", "names uniform twice"},
        BadYaml{"stages.evaluate.compare=uniform", "expected a list"},
        BadYaml{"stages.evaluate.greedy_samples=99", "is 99, expected at most samples, 32"},
        BadYaml{"  distill: {data: {lengths: [512, 2048], words: 65}}\n",
                "stages.distill.data.words (line 7): is 65, expected a number in [1, 64]"},
        BadYaml{"  distill: {batch_tokens: 4000}\n",
                "stages.distill.data.lengths: is 512, expected a divisor of batch_tokens, 4000"},
        BadYaml{"  distill:\n    micro_batch_tokens: 256\n",
                "stages.distill.data.lengths: is 512, expected a divisor of micro_batch_tokens, 256"},
        BadYaml{"  distill:\n    batch_tokens: 6144\n    data: {lengths: [1024, 768]}\n",
                "stages.distill.data.lengths (line 9): is 768, expected a divisor of the longest, 1024"},
        BadYaml{"  distill: {lr: 1e-3}\n", "stages.distill.lr (line 7): is '1e-3', expected a map of keys"},
        BadYaml{"  distill: {lr: {from: 1e-3, too: 1e-4}}\n",
                "stages.distill.lr.too (line 7): no such key; did you mean to?"},
        BadYaml{"  distill:\n    tokens: 1\n    tokens: 2\n",
                "stages.distill.tokens (line 9): stands here a second time"},
        BadYaml{"  distill: {tokens: -1}\n", "stages.distill.tokens (line 7): is -1, expected a number at least 0"},
        BadYaml{"  distill: {tokens: 2Ki}\n", "stages.distill.tokens (line 7): is '2Ki', expected a whole number"},
        BadYaml{"  distill: {tokens: 0x10}\n", "stages.distill.tokens (line 7): is '0x10', expected a whole number"},
        BadYaml{"  distill: {tokens: .inf}\n", "stages.distill.tokens (line 7): is '.inf', expected a whole number"},
        BadYaml{"  distill: {clip: 1K}\n", "stages.distill.clip (line 7): is '1K', expected a number"},
        BadYaml{"  distill: {clip: nan}\n", "stages.distill.clip (line 7): is 'nan', expected a number"},
        BadYaml{"  distill: {beta2: -0.1}\n",
                "stages.distill.beta2 (line 7): is -0.1, expected a number in [0, 0.999999]"},
        BadYaml{"  distill: {data: {passkey_share: 1.5}}\n",
                "stages.distill.data.passkey_share (line 7): is 1.5, expected a number in [0, 1]"},
        BadYaml{"  distill: {data: {passkeys: [1, 2, 3]}}\n",
                "stages.distill.data.passkeys (line 7): is a list, expected a number or [min, max]"},
        BadYaml{"  distill: {data: {passkeys: [8, x]}}\n",
                "stages.distill.data.passkeys (line 7): is 'x', expected a whole number"},
        BadYaml{"  distill: {data: {lengths: [512, long]}}\n",
                "stages.distill.data.lengths (line 7): is 'long', expected a whole number"},
        BadYaml{"  evaluate: {passkeys: 11}\n",
                "stages.evaluate.passkeys (line 7): is 11, expected a number in [1, 10]"},
        BadYaml{"  evaluate: {perplexity_tokens: 100}\n",
                "stages.evaluate.perplexity_length: is 512, expected at most perplexity_tokens, 100"},
        BadYaml{"  export_: {enabled: true}\n", "stages.export_ (line 7): no such key; did you mean export?"},
        BadYaml{"mixer: {output_norm: none}\n", "mixer.output_norm (line 7): is 'none', expected one of: head, hidden"},
        BadYaml{"run: {name: }\n", "run.name (line 7): is nothing, expected a text"},
        BadYaml{"run: {name: ..}\n", "run.name (line 7): is '..', expected a plain folder name"},
        BadYaml{"run: {name: \"a\\nb\"}\n", "run.name (line 7): is 'a\\x0Ab', expected a plain folder name"},
        BadYaml{"run: {seed: 1e18}\n", "run.seed (line 7): is 1e18, expected a number at most 1e+15"},
        BadYaml{"---\nrun: {seed: 2}\n", "run.yaml: holds 2 YAML documents, expected one"},
        BadYaml{"budget={ratio: three}",
                "budget.ratio (--set): is 'three', expected linear:full layers, for example 3:1"},
        BadYaml{"budget={ratio: \"3:0\"}", "budget.ratio (--set): is '3:0', expected linear:full layers"},
        BadYaml{"stages.algin.tokens=1", "stages.algin.tokens (--set): no such key; did you mean align?"},
        BadYaml{"stages.align={tokens: 1M, toknes: 2}",
                "stages.align.toknes (--set): no such key; did you mean tokens?"},
        BadYaml{"zebra.stripes=1", "zebra.stripes (--set): no such key; known here: run, model"},
        BadYaml{"stages.evaluate.lengths.0=5",
                "stages.evaluate.lengths.0 (--set): no such key; stages.evaluate.lengths is a value"},
        BadYaml{"device.=5", "device. (--set): no such key; known here: kind, dtype, frozen_dtype, threads"},
        BadYaml{"device={dtype: float64, frozen_dtype: fp8}",
                "device.frozen_dtype (--set): is fp8, whose products give float32 or bfloat16; dtype is float64"},
        BadYaml{"device={kind: cuda, frozen_dtype: fp8}",
                "device.frozen_dtype (--set): is fp8, whose products give bfloat16 on cuda; dtype is float32"},
        BadYaml{"run.name=", "run.name (--set): is nothing, expected a text"},
        BadYaml{"run.name=[a", "run.name (--set): is not YAML"}, BadYaml{"=5", "--set =5: expected key=value"}));

TEST(BadConfigs, AnEntryWithoutAValueIsNotAnOverride) {
  EXPECT_THAT(faults_of(kGood, {"device.threads"}), HasSubstr("--set device.threads: expected key=value"));
}

TEST(BadConfigs, NamesThatNoFileSystemTakesAreRefused) {
  const std::string longest(200, 'n'), long_part(256, 'd');
  EXPECT_EQ(faults_of(kGood, {"run.name=" + longest}), "no fault");
  EXPECT_EQ(faults_of(kGood, {"run.name=" + longest + "n"}), "run.name (--set): has 201 bytes, expected at most 200");
  EXPECT_EQ(faults_of(kGood, {"run.dir=runs/" + long_part}),
            "run.dir (--set): has a part of 256 bytes, expected at most 255");
}

TEST(BadConfigs, WhatIsNotAMapOfKeysIsSaidSo) {
  EXPECT_EQ(faults_of(""), "run.yaml: is empty; docs/yaml.md lists the keys");
  EXPECT_EQ(faults_of("# only a comment\n"), "run.yaml: is empty; docs/yaml.md lists the keys");
  EXPECT_EQ(faults_of("[1, 2]"), "run.yaml: is not a map of keys; docs/yaml.md lists them");
  EXPECT_THAT(faults_of("run: " + std::string(5000, '[')), HasSubstr("is not YAML"));
}

TEST(BadConfigs, AnOverrideDoesNotHideABrokenSection) {
  EXPECT_EQ(faults_of(std::string(kGood) + "mixer: 5\n", {"mixer.decay=retnet"}),
            "mixer (line 7): is '5', expected a map of keys");
}

TEST(BadConfigs, RulesBetweenKeysAreReportedWithTheOtherFaults) {
  EXPECT_EQ(faults_of(std::string(kGood) + "run: {name: a/b}\ndevice: {threads: 0}\n"),
            "device.threads (line 8): is 0, expected a number in [1, 1024]\n"
            "run.name (line 7): is 'a/b', expected a plain folder name");
}

TEST(BadConfigs, AllFaultsComeAtOnce) {
  const std::string faults = faults_of("budget: {full_layer: 3}\nmodel: {}\n");
  for (const char* part : {"budget.full_layer (line 1)", "model.path: is missing",
                           "data: needs exactly one of text, jsonl, tokens and sources",
                           "stages.align.tokens: is missing", "stages.select.tokens: is missing"})
    EXPECT_THAT(faults, HasSubstr(part));
}

}  // namespace
}  // namespace flashmorph
