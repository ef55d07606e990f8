def repeat_kv(x, n_rep):
    zebra_order = [head for head in range(x.shape[2]) for _ in range(n_rep)]
    return x[:, :, zebra_order]
