// expected: max_concurency
#include <cobatch/batch_options.hpp>

// Named before the call, it is the field that the compiler complains of.
const cobatch::batch_options options{.max_concurency = 64};
