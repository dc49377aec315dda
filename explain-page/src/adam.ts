/** Adam (Kingma and Ba 2014), one parameter at a time, as in the package's adam_update. */

export interface Rates {
  lr: number;
  beta1: number;
  beta2: number;
  eps: number;
  step: number; // how many steps were taken before
}

export function adamStep(w: number, grad: number, m: number, v: number, rates: Rates) {
  const { lr, beta1, beta2, eps, step } = rates;
  const mNew = beta1 * m + (1 - beta1) * grad;
  const vNew = beta2 * v + (1 - beta2) * (grad * grad);
  const mHat = mNew / (1 - beta1 ** (step + 1));
  const vHat = vNew / (1 - beta2 ** (step + 1));
  const change = (-lr * mHat) / (Math.sqrt(vHat) + eps);
  return { mNew, vNew, mHat, vHat, change, result: w + change };
}
