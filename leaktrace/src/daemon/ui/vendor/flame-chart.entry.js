export { FlameChartContainer, FlameChartPlugin } from "flame-chart-js";
