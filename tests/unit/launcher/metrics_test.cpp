#include "launcher/metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <ctime>

#include "core/base/bad_input.h"
#include "proto/run.pb.h"

namespace flashmorph {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

// The whole answer of the endpoint to these bytes.
std::string answer(const Metrics& metrics, const std::string& request) {
  const size_t colon = metrics.address().rfind(':');
  sockaddr_in server{};
  server.sin_family = AF_INET;
  server.sin_port = htons(static_cast<uint16_t>(std::stoi(metrics.address().substr(colon + 1))));
  inet_pton(AF_INET, metrics.address().substr(0, colon).c_str(), &server.sin_addr);
  const int connection = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(connect(connection, reinterpret_cast<const sockaddr*>(&server), sizeof server), 0);
  EXPECT_EQ(send(connection, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  shutdown(connection, SHUT_WR);
  std::string text;
  char buffer[4096];
  for (ssize_t got = 0; (got = recv(connection, buffer, sizeof buffer, 0)) > 0;)
    text.append(buffer, static_cast<size_t>(got));
  close(connection);
  return text;
}

std::string get(const Metrics& metrics, const std::string& path = "/metrics", const std::string& method = "GET") {
  return answer(metrics, method + " " + path + " HTTP/1.0\r\n\r\n");
}

RunConfig config_named(const std::string& name) {
  RunConfig config;
  config.run.name = name;
  config.model.path = "tests/data/passkey-teacher";
  return config;
}

TEST(MetricsTest, GatesLossesAndPaceOfASelectStep) {
  Metrics metrics(config_named("a"), "1.2.3");
  metrics.started({.stage = "select", .what = "3 gates", .steps = 7, .tokens = 700});
  const auto moved = [](double loss, double regularizer, const std::vector<double>& alpha) {
    proto::GateStep gates;
    gates.set_loss(loss);
    gates.set_regularizer(regularizer);
    gates.mutable_alpha()->Add(alpha.begin(), alpha.end());
    return gates;
  };
  metrics.gates_moved({.step = 1, .tokens = 100, .loss = 5.0, .learning_rate = 0.02}, moved(5.0, 3.0, {1.0, 0.5, 0.25}),
                      {0});
  metrics.gates_moved({.step = 2, .tokens = 200, .loss = 4.0, .learning_rate = 0.01}, moved(4.0, 2.5, {1.0, 0.75, 0.0}),
                      {0});
  const std::string page = get(metrics);
  EXPECT_THAT(page, StartsWith("HTTP/1.1 200 OK"));
  for (const char* line :
       {"flashmorph_gate{layer=\"1\",run=\"a\"} 0.75\n", "flashmorph_gate_movement{layer=\"1\",run=\"a\"} 0.25\n",
        "flashmorph_gate_kept{layer=\"0\",run=\"a\"} 1\n", "flashmorph_gate_kept{layer=\"1\",run=\"a\"} 0\n",
        "flashmorph_gate_margin{run=\"a\"} 0.25\n", "flashmorph_alignment_loss{run=\"a\"} 1.5\n",
        "flashmorph_regularizer{run=\"a\"} 2.5\n", "flashmorph_loss{run=\"a\",stage=\"select\"} 4\n",
        "flashmorph_step{run=\"a\",stage=\"select\"} 2\n", "flashmorph_steps{run=\"a\",stage=\"select\"} 7\n",
        "flashmorph_tokens_total{run=\"a\",stage=\"select\"} 200\n",
        "flashmorph_step_seconds_count{run=\"a\",stage=\"select\"} 2\n",
        "flashmorph_stage_active{run=\"a\",stage=\"select\",what=\"3 gates\"} 1\n"})
    EXPECT_THAT(page, HasSubstr(line));
}

TEST(MetricsTest, StepCommunicationAndMemoryByRank) {
  Metrics metrics(config_named("a"), "1.2.3");
  metrics.ranks({{0, "n1", 2.0, 0.5, 1024}, {1, "n2", 2.0, 1.5, 2048}});
  const std::string page = get(metrics);
  EXPECT_THAT(page, HasSubstr("flashmorph_rank_step_seconds{host=\"n1\",rank=\"0\",run=\"a\"} 2\n"));
  EXPECT_THAT(page, HasSubstr("flashmorph_rank_communication_seconds{host=\"n2\",rank=\"1\",run=\"a\"} 1.5\n"));
  EXPECT_THAT(page, HasSubstr("flashmorph_rank_resident_bytes{host=\"n2\",rank=\"1\",run=\"a\"} 2048\n"));
}

// The value of a series on the page; NaN when it is not there.
double value_of(const std::string& series, const std::string& page) {
  const size_t at = page.find("\n" + series + " ");
  return at == std::string::npos ? std::nan("") : std::stod(page.substr(at + series.size() + 2));
}

TEST(MetricsTest, WhenAStageBeganAndItsLastCheckpointWasOnDisk) {
  RunConfig config = config_named("a");
  config.checkpoint.every = 20;
  Metrics metrics(config, "1.2.3");
  const auto before = static_cast<double>(std::time(nullptr));
  metrics.started({.stage = "align", .what = "", .steps = 100, .tokens = 1});
  const std::string began = get(metrics);
  EXPECT_EQ(value_of("flashmorph_checkpoint_every_steps{run=\"a\"}", began), 20.0);
  EXPECT_GE(value_of("flashmorph_stage_started_timestamp_seconds{run=\"a\",stage=\"align\"}", began), before);
  EXPECT_THAT(began, Not(HasSubstr("flashmorph_checkpoint_last_success_timestamp_seconds"))) << "none yet";
  metrics.saved(20, 0.5);
  const double saved = value_of("flashmorph_checkpoint_last_success_timestamp_seconds{run=\"a\"}", get(metrics));
  EXPECT_GE(saved, before);
  EXPECT_LE(saved, static_cast<double>(std::time(nullptr)) + 1.0);
}

TEST(MetricsTest, RecallByModelAndLength) {
  Metrics metrics(config_named("a"), "1.2.3");
  proto::Measurement measured;
  measured.set_name("uniform");
  measured.set_after("align");
  measured.set_perplexity(42.5);
  proto::RecallAtLength& recall = *measured.add_recall();
  recall.set_length(512);
  recall.mutable_teacher_forced()->set_words(8);
  recall.mutable_teacher_forced()->set_right_words(6);
  metrics.measured(measured);
  const std::string page = get(metrics);
  EXPECT_THAT(page,
              HasSubstr("flashmorph_recall_ratio{after=\"align\",length=\"512\",model=\"uniform\",run=\"a\"} 0.75\n"));
  EXPECT_THAT(page, HasSubstr("flashmorph_perplexity{after=\"align\",model=\"uniform\",run=\"a\"} 42.5\n"));
}

TEST(MetricsTest, TasksByModelAndLength) {
  Metrics metrics(config_named("a"), "1.2.3");
  proto::Measurement measured;
  measured.set_name("teacher");
  proto::TaskScore& score = *measured.add_tasks();
  score.set_task("values");
  score.set_length(512);
  score.set_score(0.25);
  metrics.scored({.step = 3, .task = "values", .length = 512, .score = 0.25});
  metrics.measured(measured);
  const std::string page = get(metrics);
  EXPECT_THAT(
      page,
      HasSubstr("flashmorph_task_score{after=\"\",length=\"512\",model=\"teacher\",run=\"a\",task=\"values\"} 0.25\n"));
  EXPECT_THAT(page, HasSubstr("flashmorph_step{run=\"a\",stage=\"\"} 3\n"));
}

TEST(MetricsTest, WhatAStageCost) {
  Metrics metrics(config_named("a"), "1.2.3");
  metrics.cost({.stage = "align", .seconds = 8.0, .ranks = 4, .flop = 2e6, .of_peak = 0.25, .price = 0.5});
  metrics.cost({.stage = "discretize", .seconds = 1.0, .ranks = 4});
  const std::string page = get(metrics);
  for (const char* line : {"rank_seconds{run=\"a\",stage=\"align\"} 32\n", "flop{run=\"a\",stage=\"align\"} 2000000\n",
                           "peak_ratio{run=\"a\",stage=\"align\"} 0.25\n", "price{run=\"a\",stage=\"align\"} 0.5\n",
                           "rank_seconds{run=\"a\",stage=\"discretize\"} 4\n"})
    EXPECT_THAT(page, HasSubstr(std::string("flashmorph_stage_") + line));
  EXPECT_THAT(page, Not(HasSubstr("flashmorph_stage_flop{run=\"a\",stage=\"discretize\"}")));
}

TEST(MetricsTest, AnEarlierStageIsNoLongerActive) {
  Metrics metrics(config_named("a"), "1.2.3");
  metrics.started({.stage = "align", .what = "", .steps = 1, .tokens = 1});
  metrics.started({.stage = "select", .what = "", .steps = 1, .tokens = 1});
  const std::string page = get(metrics);
  EXPECT_THAT(page, HasSubstr("flashmorph_stage_active{run=\"a\",stage=\"align\",what=\"\"} 0\n"));
  EXPECT_THAT(page, HasSubstr("flashmorph_stage_active{run=\"a\",stage=\"select\",what=\"\"} 1\n"));
}

TEST(MetricsTest, OnlyGetOfMetricsIsAnswered) {
  Metrics metrics(config_named("a"), "1.2.3");
  for (const char* method : {"POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})
    EXPECT_THAT(get(metrics, "/metrics", method), Not(HasSubstr(" 200 "))) << method;
  for (const char* path : {"/", "/metrics/x", "/../etc/passwd"})
    EXPECT_THAT(get(metrics, path), Not(HasSubstr(" 200 "))) << path;
  EXPECT_THAT(answer(metrics, "no request at all\r\n\r\n"), Not(HasSubstr(" 200 ")));
  EXPECT_THAT(get(metrics), StartsWith("HTTP/1.1 200 OK"));
}

TEST(MetricsTest, AnAddressThatIsTakenIsRefused) {
  const Metrics first(config_named("a"), "1.2.3");
  RunConfig config = config_named("b");
  config.metrics.listen = first.address();
  EXPECT_THROW(Metrics(config, "1.2.3"), BadInput);
}

}  // namespace
}  // namespace flashmorph
