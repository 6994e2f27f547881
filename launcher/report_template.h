#pragma once

#include <string_view>

namespace flashmorph {

// report_page.html as it stands beside this file; @RUN@ is where the run's JSON goes.
std::string_view report_template();

}  // namespace flashmorph
