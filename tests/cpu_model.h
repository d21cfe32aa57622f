/* A model of a folder, on two threads of the CPU. */
#ifndef NB_TESTS_CPU_MODEL_H
#define NB_TESTS_CPU_MODEL_H

#include "testutil.h"

struct CpuModel {
    nb_model *m = nullptr;
    explicit CpuModel(const std::string &path)
    {
        nb_model_options o;
        nb_model_options_init(&o);
        o.device = "cpu";
        o.threads = 2;
        EXPECT_NB_OK(nb_model_load(&m, path.c_str(), &o));
    }
    ~CpuModel() { nb_model_free(m); }
    CpuModel(const CpuModel &) = delete;
    CpuModel &operator=(const CpuModel &) = delete;
};

#endif
