-- SPDX-License-Identifier: BSL-1.0
-- For wrk: one image a request.
--   inference_server --engine accelerator &
--   wrk -t1 -c64 -d20s --latency -s examples/production/load.lua http://127.0.0.1:8080/predict
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = "[0,0,8,15,15,2,0,0,0,2,16,13,12,10,0,0,0,3,15,1,9,11,0,0,0,0,0,1,15,8,0,0," ..
  "0,0,0,10,13,1,0,0,0,0,8,16,7,0,0,0,0,6,16,16,13,7,6,1,0,0,7,5,12,16,15,2]"
