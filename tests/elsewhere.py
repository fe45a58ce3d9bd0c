"A GPU that is none: tensors stay on the CPU and say that they are elsewhere, and what would fail for want of a common device fails here."
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

THERE, HERE = torch.device('cuda', 0), torch.device('cpu')
T = torch.Tensor
MOVES = {'to', 'cpu', 'cuda'}                                                       # their results are where they say
INDEXED = {'__getitem__', '__setitem__', 'index_put', 'index_put_'}                 # what is there may be asked by indices from here

def is_there(x) -> bool: return getattr(x, '_is_there', False)

def put(x, there: bool):
    "Every tensor of a result, or every weight of a model, is from now on there."
    for t in [*x.parameters(), *x.buffers()] if isinstance(x, torch.nn.Module) else tree_leaves(x):
        if isinstance(t, T): t._is_there = there
    return x

def wanted(device): return None if device is None else torch.device(device).type == 'cuda'

class Elsewhere(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, '__name__', '')
        if func == T.device.__get__: return THERE if is_there(args[0]) else HERE
        if func == T.is_cuda.__get__: return is_there(args[0])
        if name == '__set__':                                                        # x.data = …, x.grad = …
            func(*args)
            return put(args[0], is_there(args[1])) if func == T.data.__set__ and is_there(args[1]) != is_there(args[0]) else None
        if name in MOVES and isinstance(args[0], T): return self.move(func, name, args, kwargs)
        if name in ('numpy', '__array__') and is_there(args[0]):
            if not kwargs.get('force'): raise TypeError("can't convert cuda:0 device type tensor to numpy")
            return func(put(args[0].detach().clone(), False))
        asked = wanted(kwargs.pop('device', None))
        own = [t for t in tree_leaves((args, kwargs)) if isinstance(t, T)]
        there = self.common(name, args, own) if asked is None or name.startswith('new_') else asked
        if asked is not None: there = asked
        if there and isinstance(kwargs.get('generator'), torch.Generator): raise RuntimeError(f"{name}: expected a 'cuda' generator, it is of the CPU")
        out = func(*args, **kwargs)
        if name in ('as_tensor', 'tensor') and any(out is t for t in own) and there != is_there(out): out = out.clone()
        return put(out, there) if there else out

    def common(self, name, args, own):
        "Are the tensors there? An error where some are and others are not."
        if name in ('copy_', '_has_compatible_shallow_copy_type'): return is_there(args[0])
        if name in INDEXED:
            index = [t for t in tree_leaves(args[1]) if isinstance(t, T) and t.ndim]
            if not is_there(args[0]) and any(map(is_there, index)): raise RuntimeError("indices should be on the cpu, as what is indexed")
            own = [t for t in own if all(t is not i for i in index)]
        there = [t for t in own if is_there(t)]
        if there and (lost := [t for t in own if t.ndim and not is_there(t)]):
            raise RuntimeError(f"{name}: expected all tensors on one device, found cuda:0 {[*map(tuple, (t.shape for t in there))]} and cpu {[*map(tuple, (t.shape for t in lost))]}")
        return bool(there)

    def move(self, func, name, args, kwargs):
        x, more = args[0], list(args[1:])
        there = is_there(x) if name == 'to' else name == 'cuda'
        if name == 'to':
            at = next((i for i, a in enumerate(more) if isinstance(a, (str, torch.device, T))), None)
            if isinstance(other := kwargs.pop('other', None), T): more.insert(0, other); at = 0
            if at is not None and isinstance(more[at], T): there, more[at] = is_there(more[at]), more[at].dtype
            elif at is not None: there = wanted(more.pop(at))
            if (device := kwargs.pop('device', None)) is not None: there = wanted(device)
            more = [a for a in more if a is not None and not isinstance(a, bool)]      # non_blocking
            y = x.to(*more, **kwargs) if more or kwargs else x
        else: y = x
        return y if there == is_there(x) == is_there(y) else put(y.clone() if y is x else y, there)
