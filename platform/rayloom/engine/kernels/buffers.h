// Memory that a thread keeps from call to call.
#pragma once
#include <cstdlib>

struct Buffer {
    char* data = nullptr;
    size_t size = 0;
    ~Buffer() { free(data); }
    char* at_least(size_t wanted) {
        if (wanted > size) {
            free(data);
            size = (wanted * 5 / 4 + 4095) / 4096 * 4096;
            data = static_cast<char*>(aligned_alloc(4096, size));
            if (!data) abort();
        }
        return data;
    }
};
