"""A pruned network made fast on an ordinary CPU.

graph, trace, operations, leaves   the network as layers, neurons, pools and edges
plan, weights                      norms folded, additions and neurons taken into layers
program, reals, tuner              run: buffers and calls, kernels chosen by measuring
proof                              layer by layer against float64
network, report                    what the user holds
"""
