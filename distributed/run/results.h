#pragma once

#include <string>
#include <vector>

#include "core/config/run_config.h"
#include "proto/run.pb.h"

namespace flashmorph {

// The run's numbers as a table: a header row, then a row a measurement. Recall is the share of right answer words.
using TextTable = std::vector<std::vector<std::string>>;
TextTable results_table(const proto::PlanSet& plans, const proto::Evaluation& evaluation);

// The exported model's README.md: what it is, what it recalls, what every finished stage took, the run's configuration.
using StageResults = google::protobuf::RepeatedPtrField<proto::StageResult>;
std::string model_card(const RunConfig& config, const proto::PlanSet& plans, const proto::Evaluation& evaluation,
                       const StageResults& finished);

}  // namespace flashmorph
