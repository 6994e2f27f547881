#pragma once

#include <filesystem>
#include <string>

#include "distributed/run/run_record.h"

namespace flashmorph {

// The run as one HTML page that needs no network: the kept layers, gates over time, losses, recall by length and depth,
// cost, configuration, provenance. The numbers stand in it as JSON, a script of its own draws them.
std::string report_page(const RunRecord& record);

// Writes it as report.html into the run's folder; returns the file.
std::filesystem::path write_report(const std::filesystem::path& run_folder);

}  // namespace flashmorph
