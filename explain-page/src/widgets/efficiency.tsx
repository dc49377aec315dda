/** Section 12: what a model of another size would have and need. */

import { useSignal } from "@preact/signals";
import { format } from "../format";
import { Num, Origin, Slider, Words } from "../parts";
import { config } from "../state";
import { t } from "../words";

export interface Sizes {
  vocab_size: number;
  n_layer: number;
  n_embd: number;
  n_head: number;
  block_size: number;
}

/** The number of parameters, matrix by matrix as in Config.shapes. */
export function parameters({ vocab_size, n_layer, n_embd, block_size }: Sizes): number {
  return 2 * vocab_size * n_embd + block_size * n_embd + n_layer * (4 * n_embd ** 2 + 8 * n_embd ** 2);
}

/** Multiplications in the matrices and the attention of one forward pass over block_size tokens. */
export function multiplications(sizes: Sizes): number {
  const { vocab_size, n_layer, n_embd, block_size: length } = sizes;
  const looks = (length * (length + 1)) / 2;
  return length * (vocab_size * n_embd + n_layer * 12 * n_embd ** 2) + n_layer * 2 * looks * n_embd;
}

const CHOICES: Record<string, number[]> = {
  n_embd: [4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 2048, 4096, 8192, 12288],
  n_layer: [1, 2, 3, 4, 6, 8, 12, 24, 48, 96],
  n_head: [1, 2, 4, 8, 12, 16, 32, 64, 96],
  block_size: [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192],
};

export function SizeSliders() {
  const sizes = useSignal<Sizes>({ ...config });
  const own = Object.keys(CHOICES).every((name) => sizes.value[name as keyof Sizes] === config[name as keyof Sizes]);
  return (
    <>
      {Object.entries(CHOICES).map(([name, steps]) => {
        const mine = config[name as keyof Sizes];
        const values = [...new Set([...steps, mine])].sort((a, b) => a - b);
        const value = sizes.value[name as keyof Sizes];
        return (
          <Slider
            label={name}
            min={0}
            max={values.length - 1}
            step={1}
            value={values.indexOf(value)}
            set={(i) => (sizes.value = { ...sizes.value, [name]: values[i] })}
            text={format(value, "i")}
          />
        );
      })}
      {sizes.value.n_embd % sizes.value.n_head ? (
        <p class="alarm" role="alert">
          {t("efficiency.heads", { embd: sizes.value.n_embd, head: sizes.value.n_head })}
        </p>
      ) : (
        <p class="says">
          <Words
            k="efficiency.sizes"
            params={<b class="params"><Num v={parameters(sizes.value)} f="i" /></b>}
            times={<Num v={parameters(sizes.value) / config.num_params} f="g" />}
            multiplications={<Num v={multiplications(sizes.value)} f="i" />}
          />
        </p>
      )}
      <Origin of={own ? "page" : "you"} />
    </>
  );
}
