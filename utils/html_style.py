"""The style sheet of every report page: one calm look for screen, phone, dark mode and print.

Series colours differ in lightness as well as hue and the lines also in dashes, so that charts
survive colour blindness and a black-and-white printer.
"""

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbf9;--card:#fff;--ink:#1d232b;--soft:#5b6572;--line:#e0e0db;
--link:#1f5fa8;--s0:#3b6ea8;--s1:#d17a22;--s2:#3a8f6f;--s3:#a8558f;--s4:#8a7a2b;--s5:#b23a48;
--warn:#a15c00;--warn-bg:#fdf5e6;--note-bg:#f1f4f8}
@media (prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1b1f25;--ink:#e4e7ea;--soft:#9aa5b1;
--line:#323943;--link:#8ab8ee;--s0:#7aa9dd;--s1:#e8a05a;--s2:#6fc2a0;--s3:#d491c0;--s4:#cbbb67;
--s5:#f08c96;--warn:#f0b866;--warn-bg:#2b2417;--note-bg:#1e252e}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);line-height:1.55;font-size:16px;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:56rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.01em;font-weight:650}
h2{font-size:1.3rem;margin:2.8rem 0 .6rem;padding-top:1.1rem;border-top:1px solid var(--line);
font-weight:650}
h3{font-size:1.03rem;margin:1.7rem 0 .4rem;font-weight:650}
p,ul.list{margin:.6rem 0;max-width:44rem}
.lead{color:var(--soft);font-size:1.05rem;margin-top:0}
a{color:var(--link)}
nav{margin:1.1rem 0 0;font-size:.92rem;line-height:2}
nav a{margin-right:1.1rem;white-space:nowrap}
.notice{background:var(--note-bg);border-left:3px solid var(--s0);border-radius:3px;
padding:.7rem 1rem;margin:1rem 0;max-width:48rem}
.notice.warning{background:var(--warn-bg);border-color:var(--warn)}
.notice b{display:block;font-size:.82rem;letter-spacing:.02em;color:var(--soft);font-weight:650}
.notice.warning b{color:var(--warn)}
.notice p{margin:.15rem 0}.notice p+p{margin-top:.45rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums;min-width:50%}
figcaption{color:var(--soft);font-size:.87rem;
padding-top:.5rem;max-width:44rem;line-height:1.45}
th,td{padding:.42rem .9rem .42rem 0;text-align:left;vertical-align:baseline;
border-bottom:1px solid var(--line)}
th:last-child,td:last-child{padding-right:.2rem}
thead th{color:var(--soft);font-weight:600;font-size:.84rem;border-bottom-color:var(--soft);
vertical-align:bottom}
tbody th{font-weight:500}
.num{text-align:right;white-space:nowrap}
.dense{font-size:.85rem}.dense thead th{font-size:.8rem}.dense .num{white-space:normal}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.4rem;margin:1rem 0;
font-size:.94rem}
.facts dt{color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}
figure{margin:1.2rem 0}
figure img{display:block;max-width:100%;height:auto;border-radius:3px}
.chart-box{background:var(--card);border:1px solid var(--line);border-radius:6px;
padding:1rem 1.1rem .8rem;max-width:46rem}
.chart-box .caption-title{font-weight:600;font-size:.95rem;margin:0 0 .5rem}
svg.chart{display:block;width:100%;height:auto;overflow:visible}
.chart text{font-size:13px;fill:var(--soft);font-variant-numeric:tabular-nums}
.chart .name{fill:var(--ink);font-size:13.5px}
.chart .end{text-anchor:end}.chart .centre{text-anchor:middle}.chart .mid{dominant-baseline:central}
.chart .grid{stroke:var(--line);stroke-width:1}.chart .tick,.chart .zero{stroke:var(--soft);
stroke-width:1;opacity:.6;fill:none}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .faint{opacity:.28;stroke-width:1}
.chart .whisker{stroke:var(--ink);stroke-width:1.4;fill:none;opacity:.75}
.chart .bound{stroke-width:1.2;fill:none;opacity:.6}
.bound.c0{stroke:var(--s0)}.bound.c1{stroke:var(--s1)}.bound.c2{stroke:var(--s2)}
.bound.c3{stroke:var(--s3)}.bound.c4{stroke:var(--s4)}.bound.c5{stroke:var(--s5)}
.line-key{width:34px;height:12px;margin-right:.45em;vertical-align:-.05em}
.line-key .line{fill:none;stroke-width:2}
.line.c0{stroke:var(--s0)}.line.c1{stroke:var(--s1)}.line.c2{stroke:var(--s2)}
.line.c3{stroke:var(--s3)}.line.c4{stroke:var(--s4)}.line.c5{stroke:var(--s5)}
.line.c1{stroke-dasharray:7 4}.line.c2{stroke-dasharray:2 4}.line.c3{stroke-dasharray:9 3 2 3}
.line.c4{stroke-dasharray:14 4}.line.c5{stroke-dasharray:1 5 6 5}
.line.faint{stroke-dasharray:none}
.bar.c0,.dot.c0{fill:var(--s0)}.bar.c1,.dot.c1{fill:var(--s1)}.bar.c2,.dot.c2{fill:var(--s2)}
.bar.c3,.dot.c3{fill:var(--s3)}.bar.c4,.dot.c4{fill:var(--s4)}.bar.c5,.dot.c5{fill:var(--s5)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.3rem;margin:.5rem 0 0;padding:0;
font-size:.9rem}
.key{display:inline-block;width:.85em;height:.85em;border-radius:2px;margin-right:.45em;
vertical-align:-.08em}
.key.c0{background:var(--s0)}.key.c1{background:var(--s1)}.key.c2{background:var(--s2)}
.key.c3{background:var(--s3)}.key.c4{background:var(--s4)}.key.c5{background:var(--s5)}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1.2rem}
.sides h4{margin:0 0 .4rem;font-size:.88rem;font-weight:600;color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(5.6rem,1fr));gap:4px}
.tiles.large{grid-template-columns:repeat(auto-fill,minmax(7.8rem,1fr));gap:8px}
.tiles img{width:100%;height:auto;display:block;border-radius:2px;background:#000}
.tiles span{font-size:.78rem;color:var(--soft);display:block;overflow-wrap:anywhere}
.card{background:var(--card);border:1px solid var(--line);border-radius:6px;margin:.9rem 0;
padding:.8rem 1rem;display:grid;gap:.2rem 1.2rem;
grid-template-columns:minmax(0,14rem) minmax(0,1fr)}
.card h4{grid-column:1/-1;margin:0 0 .4rem;font-size:.95rem;font-weight:650}
.card small{color:var(--soft);font-weight:400;font-size:.8rem;overflow-wrap:anywhere}
.card img{width:100%;height:auto;border-radius:3px;background:#000}
.card dl{margin:0;display:grid;grid-template-columns:minmax(5rem,8.5rem) minmax(0,1fr);
row-gap:.5rem;font-size:.9rem;line-height:1.5;align-content:start}
.card dt{font-weight:500;line-height:1.35;padding-top:.08rem}.card dt small{display:block}
.card dd{margin:0;padding-left:.9rem;overflow-wrap:anywhere}
.card dt:first-of-type,.card dd:first-of-type{padding-bottom:.5rem;
border-bottom:1px solid var(--line)}
.mark{border-radius:2px;padding:.05em .15em;border-bottom:2px solid transparent;
-webkit-box-decoration-break:clone;box-decoration-break:clone}
.mark b{margin-left:.2em;font-weight:700}.mark i{margin-left:.35em;font-size:.82em}
.mark.right{background:color-mix(in srgb,var(--s0) 15%,transparent);border-color:var(--s0)}
.mark.right b{color:var(--s0)}
.mark.invented{background:color-mix(in srgb,var(--s1) 20%,transparent);
border-bottom-style:double;border-bottom-width:3px;border-color:var(--s1)}
.mark.invented b{color:var(--warn)}
.mark.missed{border-bottom-style:dashed;border-color:var(--s5)}
.mark.missed b,.mark.missed i{color:var(--s5)}
.mark.denied{border-bottom:1px dotted var(--soft);color:var(--soft)}
.legend.marks{display:block}.legend.marks li{margin:.3rem 0}
summary{cursor:pointer;color:var(--link);padding:.4rem 0}
pre{background:var(--note-bg);padding:.7rem .9rem;border-radius:4px;overflow-x:auto;
font-size:.86rem;font-family:ui-monospace,Menlo,Consolas,"Liberation Mono",monospace}
@media (max-width:600px){main{padding:1.4rem 1rem 3rem}h1{font-size:1.5rem}h2{font-size:1.2rem}
.facts{grid-template-columns:1fr;gap:0}.facts dd{margin-bottom:.5rem}
.chart text,.chart .name{font-size:21px}.chart-box{padding:.8rem .7rem .6rem}
th,td{padding-right:.7rem}
.card,.card dl{grid-template-columns:minmax(0,1fr)}.card dl{row-gap:.1rem}
.card dd{padding-left:0;margin-bottom:.5rem}.card dt:first-of-type{border:0;padding-bottom:0}}
@media print{:root{--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc;--note-bg:#f5f5f5;
--warn-bg:#f5f5f5;--s0:#3b6ea8;--s1:#d17a22;--s2:#3a8f6f;--s3:#a8558f;--s4:#8a7a2b;--s5:#b23a48}
body{font-size:10.5pt}main{max-width:none;padding:0}nav{display:none}
figure,.notice,tr,.sides>div,.card{break-inside:avoid}h2,h3{break-after:avoid}.scroll{overflow:visible}
.chart-box{max-width:34rem}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
