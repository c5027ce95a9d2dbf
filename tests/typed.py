"""What a typed user writes. `make lint` checks it; an ignore that is not needed is an error too."""

from sampler import MinP, Sampler, Temperature, TopK, TopP

CHAIN = [Temperature(), TopK(), TopK(None), TopP(0.9), MinP(min_p=0.1)]
SAMPLERS = [Sampler(CHAIN, seed=7), Sampler(temperature=0.8, top_k=40, top_p=None)]

TopK(k=3)  # type: ignore[call-arg]
Sampler(top_q=3)  # type: ignore[call-arg]
Sampler(top_p="a lot")  # type: ignore[arg-type]
