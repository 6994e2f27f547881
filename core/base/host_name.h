#pragma once

#include <string>

namespace flashmorph {

std::string host_name();  // of the machine that this process runs on

}  // namespace flashmorph
