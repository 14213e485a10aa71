// expected: deleted
#include <cobatch/batch_options.hpp>

#include <stop_token>

const std::stop_source source;
const cobatch::batch_options options{.stop = source.get_token()};
